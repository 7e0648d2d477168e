"""Tied scale matrices: one dense matrix shared by all components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.numerics import cross_moments, exact
from tmixture.scales.base import Moments, Scale, Shares
from tmixture.scales.cholesky import inverse_of, whitening_of
from tmixture.scales.pairs import weighted_sums


@dataclass(frozen=True)
class TiedScale(Scale):
    """Σ_k⁻¹ = WᵀW for every k, with a lower-triangular W."""

    whitening: Tensor
    """(d, d): inverse Cholesky factor of the shared scale matrix."""

    covariance_type: ClassVar[str] = "tied"
    constraints: ClassVar[dict[str, Constraint]] = {"whitening": constraints.lower_cholesky}
    expands_squares: ClassVar[bool] = True
    per_component: ClassVar[bool] = False

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        z, centres = features @ self.whitening.T, means @ self.whitening.T
        squares = z.square().sum(1) + centres.square().sum(1, keepdim=True)
        return torch.addmm(squares, centres, z.T, alpha=-2).clamp_(min=0).T

    def half_log_det(self, n_features: int) -> Tensor:
        return -exact(self.whitening.diagonal()).log().sum()

    def precisions(self, n_features: int) -> Tensor:
        return exact(self.whitening.square().sum(0))[None]

    def dense(self, n_components: int, n_features: int) -> Tensor:
        factor = inverse_of(self.whitening)
        return (factor @ factor.T).expand(n_components, n_features, n_features)

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.whitening, noise.T, upper=False).T

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_features, n_features)

    def reference(self, means: Tensor, apart: Tensor) -> None:
        return None

    def accumulate(self, moments: Moments, features: Tensor, shares: Shares) -> None:
        moments.first.add_(weighted_sums(shares.weight, features))
        moments.scatter.add_(cross_moments(features * shares.weight.sum(1, keepdim=True), features))

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        cross = first.T @ delta
        return scatter + cross + cross.T + (mass[:, None] * delta).T @ delta

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        covariance = (scatter + added.sum(0).diag()) / denominator.sum()
        return type(self)(whitening_of(covariance))

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return weights.sum() * self.dense(1, n_features)[0]

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(torch.diag_embed(variance.mean(0).rsqrt()))

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(inverse_of(torch.linalg.cholesky(matrices.mean(0))))

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_features * (n_features + 1) // 2

    def variances(self, n_features: int) -> Tensor:
        return inverse_of(self.whitening).square().sum(1)[None]
