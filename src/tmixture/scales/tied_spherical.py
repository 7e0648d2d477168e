"""One variance that all components and features share: k-means with soft edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import Self

from tmixture.numerics import exact
from tmixture.scales.tied_diag import TiedDiagonalScale


@dataclass(frozen=True)
class TiedSphericalScale(TiedDiagonalScale):
    """Σ_k = I/whitening² for every k."""

    whitening: Tensor
    """(1,): the reciprocal standard deviation."""

    covariance_type: ClassVar[str] = "tied_spherical"

    def half_log_det(self, n_features: int) -> Tensor:
        return -n_features * exact(self.whitening).log().sum()

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (1,)

    @staticmethod
    def pooled(squares: Tensor) -> Tensor:
        return squares.sum(0, keepdim=True)

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(variance.mean().rsqrt()[None])

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return 1

    def marginal(self, features: Tensor, n_features: int) -> Self:
        return self
