"""Full scale matrices: one dense matrix per component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from typing_extensions import Self

from tmixture.scales.base import Scale, cross_moments, log64
from tmixture.scales.cholesky import inverse_of, squared_norm_of_whitened, whitening_of


@dataclass(frozen=True)
class FullScale(Scale):
    """Σ_k⁻¹ = W_kᵀW_k with lower-triangular W_k."""

    whitening: Tensor
    """(K, d, d): inverse Cholesky factors of the scale matrices."""

    covariance_type: ClassVar[str] = "full"
    constraints: ClassVar[dict[str, constraints.Constraint]] = {"whitening": constraints.lower_cholesky}
    expands_squares: ClassVar[bool] = False

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        offsets = (self.whitening @ means[:, :, None])[:, :, 0]
        columns = [squared_norm_of_whitened(features, w, offset) for w, offset in zip(self.whitening, offsets)]
        return torch.stack(columns, dim=1)

    def half_log_det(self, n_features: int) -> Tensor:
        return -log64(self.whitening.diagonal(dim1=1, dim2=2)).sum(1)

    def dense(self, n_components: int, n_features: int) -> Tensor:
        factor = inverse_of(self.whitening)
        return factor @ factor.transpose(1, 2)

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        result = torch.empty_like(noise)
        for k in component.unique().tolist():
            rows = component == k
            result[rows] = torch.linalg.solve_triangular(self.whitening[k], noise[rows].T, upper=False).T
        return result

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components, n_features, n_features)

    def reference(self, means: Tensor) -> Tensor:
        return means

    def accumulate(
        self,
        first: Tensor,
        scatter: Tensor,
        features: Tensor,
        responsibilities: Tensor,
        weight: Tensor,
        means: Tensor,
    ) -> None:
        # In high dimension nearly every weight is zero: gather the rows that count, and pay N·d² instead of N·K·d².
        counts = weight > 0
        for k, mean in enumerate(means):
            rows = counts[:, k].nonzero()[:, 0]
            centred = features[rows] - mean
            weighted = centred * weight[rows, k, None]
            first[k] += weighted.sum(0, dtype=first.dtype)
            scatter[k] += cross_moments(weighted, centred)

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        cross = first[:, :, None] * delta[:, None, :]
        return scatter + cross + cross.transpose(1, 2) + (mass[:, None] * delta)[:, :, None] * delta[:, None, :]

    def estimate(
        self, scatter: Tensor, mass: Tensor, denominator: Tensor, regularization: Tensor, n_features: int
    ) -> Self:
        factors = torch.empty_like(scatter)
        for k in range(len(scatter)):
            covariance = scatter[k] / denominator[k]
            covariance.diagonal().add_(regularization[k])
            factors[k] = whitening_of(covariance, f"component {k}")
        return type(self)(factors)

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return weights[:, None, None] * self.dense(len(weights), n_features)

    @classmethod
    def isotropic(cls, variance: Tensor, n_features: int, rank: int = 0) -> Self:
        return cls(torch.diag_embed(variance.rsqrt()[:, None].expand(-1, n_features)))

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(inverse_of(torch.linalg.cholesky(matrices)))

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    def mean_variance(self, n_features: int) -> Tensor:
        # trace(Σ) = ‖W⁻¹‖²_F, one component at a time.
        return torch.stack([inverse_of(w).square().sum() for w in self.whitening]) / n_features
