"""Diagonal scale matrices: one variance per component and feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from tmixture.scales.base import EXPANDED_LIMIT, Scale, cross_moments, log64

# As many components can be treated one by one before float64 is faster.
MOST_APART = 8


@dataclass(frozen=True)
class DiagonalScale(Scale):
    """Σ_k = diag(1/whitening_k²).

    With features [x, x²], distances and statistics of a chunk are one matrix product each.
    """

    whitening: Tensor
    """(K, d): reciprocal standard deviations, W with Σ⁻¹ = W²."""

    covariance_type: ClassVar[str] = "diag"
    constraints: ClassVar[dict[str, constraints.Constraint]] = {"whitening": constraints.positive}

    @staticmethod
    def features(x: Tensor) -> Tensor:
        return torch.cat([x, x * x], dim=1)

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        precision = self.whitening.square()
        coefficients = torch.cat([-2 * precision * means, precision], dim=1)
        return torch.addmm((precision * means.square()).sum(1), features, coefficients.T).clamp(min=0)

    def part_of_mahalanobis(self, part: int, component: int, features: Tensor, mean: Tensor) -> Tensor:
        return ((features[:, : len(mean)] - mean) * self.whitening[component]).square().sum(1)

    def apart(self, means: Tensor) -> list[int]:
        far = (self.whitening * means).square().mean(1) > EXPANDED_LIMIT
        components: list[int] = far.nonzero()[:, 0].tolist()
        return components if len(components) <= MOST_APART else []

    def reference(self, means: Tensor) -> Tensor:
        reference, apart = torch.zeros_like(means), self.apart(means)
        reference[apart] = means[apart]
        return reference

    def half_log_det(self, n_features: int) -> Tensor:
        return -log64(self.whitening).sum(1)

    def dense(self, n_components: int, n_features: int) -> Tensor:
        return torch.diag_embed(self.whitening.square().reciprocal())

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        return noise / self.whitening[component]

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features)

    def accumulate(
        self,
        first: Tensor,
        scatter: Tensor,
        features: Tensor,
        responsibilities: Tensor,
        weight: Tensor,
        means: Tensor,
    ) -> None:
        moments = cross_moments(weight, features)
        for k in self.apart(means):
            rows = weight[:, k].nonzero()[:, 0]
            centred = features[rows, : means.shape[1]] - means[k]
            moments[k] = cross_moments(weight[rows, k, None], self.features(centred))[0]
        first += moments[:, : first.shape[1]]
        scatter += moments[:, first.shape[1] :]

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        return scatter + (2 * first + mass[:, None] * delta) * delta

    def estimate(
        self, scatter: Tensor, mass: Tensor, denominator: Tensor, regularization: Tensor, n_features: int
    ) -> Self:
        variance = (scatter / denominator[:, None]).clamp(min=0) + regularization[:, None]
        return type(self)(variance.rsqrt())

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return weights[:, None] / self.whitening.square()

    @classmethod
    def isotropic(cls, variance: Tensor, n_features: int, rank: int = 0) -> Self:
        return cls(variance.rsqrt()[:, None].repeat(1, n_features))

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(matrices.diagonal(dim1=1, dim2=2).rsqrt())

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features

    def mean_variance(self, n_features: int) -> Tensor:
        return self.whitening.square().reciprocal().mean(1)
