"""One diagonal scale matrix that all components share: a variance for each feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.numerics import column_sums, exact
from tmixture.scales.base import Moments, Scale, Shares
from tmixture.scales.pairs import weighted_sums


@dataclass(frozen=True)
class TiedDiagonalScale(Scale):
    """Σ_k = diag(1/whitening²) for every k."""

    whitening: Tensor
    """(d,): reciprocal standard deviations."""

    covariance_type: ClassVar[str] = "tied_diag"
    correlates: ClassVar[bool] = False
    constraints: ClassVar[dict[str, Constraint]] = {"whitening": constraints.positive}
    expands_squares: ClassVar[bool] = True
    per_component: ClassVar[bool] = False

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        z, centres = features * self.whitening, means * self.whitening
        squares = z.square().sum(1) + centres.square().sum(1, keepdim=True)
        return torch.addmm(squares, centres, z.T, alpha=-2).clamp_(min=0).T

    def half_log_det(self, n_features: int) -> Tensor:
        return -exact(self.whitening).log().sum()

    def precisions(self, n_features: int) -> Tensor:
        return exact(self.whitening).square()[None]

    def dense(self, n_components: int, n_features: int) -> Tensor:
        variance = self.variances(n_features)[0].expand(n_features)
        return variance.diag().expand(n_components, n_features, n_features)

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        return noise / self.whitening

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_features,)

    def reference(self, means: Tensor, apart: Tensor) -> None:
        return None

    def accumulate(self, moments: Moments, features: Tensor, shares: Shares) -> None:
        moments.first.add_(weighted_sums(shares.weight, features))
        moments.scatter.add_(self.pooled(column_sums(features.square() * shares.weight.sum(1, keepdim=True))))

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        return scatter + self.pooled(((2 * first + mass[:, None] * delta) * delta).sum(0))

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        total = scatter.clamp(min=0) + self.pooled(added.sum(0))
        return type(self)((denominator.sum() * n_features / len(scatter) / total).sqrt())

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return weights.sum() * self.pooled(self.variances(n_features)[0].expand(n_features))

    @staticmethod
    def pooled(squares: Tensor) -> Tensor:
        """Sums of squares of each feature (d,), added up where features share a variance."""
        return squares

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(variance.mean(0).rsqrt())

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls.diagonal(matrices.diagonal(dim1=1, dim2=2))

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_features

    def marginal(self, features: Tensor, n_features: int) -> Self:
        return type(self)(self.whitening[features])

    def variances(self, n_features: int) -> Tensor:
        return self.whitening.square().reciprocal()[None]
