"""Diagonal scale matrices: one variance per component and feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.numerics import exact
from tmixture.scales.expanded import ExpandedScale
from tmixture.scales.pairs import rows_at


@dataclass(frozen=True)
class DiagonalScale(ExpandedScale):
    """Σ_k = diag(1/whitening_k²).

    With features [x, x²], distances and statistics of a chunk are one matrix product each.
    """

    whitening: Tensor
    """(K, d): reciprocal standard deviations, W with Σ⁻¹ = W²."""

    covariance_type: ClassVar[str] = "diag"
    correlates: ClassVar[bool] = False
    constraints: ClassVar[dict[str, Constraint]] = {"whitening": constraints.positive}

    @staticmethod
    def width(n_features: int) -> int:
        return 2 * n_features

    @staticmethod
    def further_features(x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(x, x, out=out)

    def whiten(self, x: Tensor, components: Tensor) -> Tensor:
        return x * rows_at(self.whitening, components)

    def expansion(self, means: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.whitening.square()
        slope = precision * means
        return torch.cat([-2 * slope, precision], dim=-1), (slope * means).sum(-1)

    def half_log_det(self, n_features: int) -> Tensor:
        return -exact(self.whitening).log().sum(1)

    def precisions(self, n_features: int) -> Tensor:
        return exact(self.whitening).square()

    def dense(self, n_components: int, n_features: int) -> Tensor:
        return torch.diag_embed(self.whitening.square().reciprocal())

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        return noise / self.whitening[component]

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features)

    @staticmethod
    def squares(moments: Tensor) -> Tensor:
        return moments[:, moments.shape[1] // 2 :]

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        return torch.addcmul(scatter, torch.add(mass[:, None] * delta, first, alpha=2), delta)

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        return type(self)((denominator[:, None] / (scatter.clamp(min=0) + added)).sqrt())

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return weights[:, None] / self.whitening.square()

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(variance.rsqrt())

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(matrices.diagonal(dim1=1, dim2=2).rsqrt())

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    def marginal(self, features: Tensor, n_features: int) -> Self:
        return type(self)(self.whitening[:, features])

    def variances(self, n_features: int) -> Tensor:
        return self.whitening.square().reciprocal()
