"""Full scale matrices: one dense matrix per component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.numerics import exact
from tmixture.scales.base import Scale
from tmixture.scales.cholesky import inverse_of, row_blocks, squared_norm_of_whitened, whitening_of, whitenings_of

# Rows of W in the first part of a distance.
SMALLEST_PART = 32
# Up to so many features all matrices are worked on at once.
FEW_FEATURES = 32


@dataclass(frozen=True)
class FullScale(Scale):
    """Σ_k⁻¹ = W_kᵀW_k with lower-triangular W_k."""

    whitening: Tensor
    """(K, d, d): inverse Cholesky factors of the scale matrices."""

    covariance_type: ClassVar[str] = "full"
    constraints: ClassVar[dict[str, Constraint]] = {"whitening": constraints.lower_cholesky}

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        blocks = row_blocks(means.shape[1])
        columns = [
            torch.stack([squared_norm_of_whitened(features, w, mean, rows) for rows in blocks]).sum(0)
            for w, mean in zip(self.whitening, means)
        ]
        return torch.stack(columns).T

    def parts(self, n_features: int) -> int:
        return len(_parts(n_features))

    def part_of_mahalanobis(self, part: int, component: int, features: Tensor, mean: Tensor) -> Tensor:
        return squared_norm_of_whitened(features, self.whitening[component], mean, _parts(len(mean))[part])

    def half_log_det(self, n_features: int) -> Tensor:
        return -exact(self.whitening.diagonal(dim1=1, dim2=2)).log().sum(1)

    def precisions(self, n_features: int) -> Tensor:
        return exact(self.whitening.square().sum(1))

    def dense(self, n_components: int, n_features: int) -> Tensor:
        factor = inverse_of(self.whitening)
        return factor @ factor.transpose(1, 2)

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        result = torch.empty_like(noise)
        for k in component.unique().tolist():
            rows = component == k
            result[rows] = torch.linalg.solve_triangular(self.whitening[k], noise[rows].T, upper=False).T
        return result

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        def covariance(k: int) -> Tensor:
            return (scatter[k] + added[k].diag()) / denominator[k]

        if n_features <= FEW_FEATURES:  # calls would cost more than memory
            return type(self)(whitenings_of((scatter + torch.diag_embed(added)) / denominator[:, None, None]))
        factors, failures = torch.empty_like(scatter), []
        for k in range(len(scatter)):
            factor, failure = torch.linalg.cholesky_ex(covariance(k))
            factors[k] = inverse_of(factor)
            failures.append(failure)
        for k in torch.stack(failures).nonzero()[:, 0].tolist():  # asked once, as a GPU comes to a halt for it
            factors[k] = whitening_of(covariance(k))
        return type(self)(factors)

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(torch.diag_embed(variance.rsqrt()))

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(inverse_of(torch.linalg.cholesky(matrices)))

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components * n_features * (n_features + 1) // 2

    def variances(self, n_features: int) -> Tensor:
        # Of Σ = W⁻¹W⁻ᵀ, one component at a time.
        return torch.stack([inverse_of(w).square().sum(1) for w in self.whitening])


def _parts(d: int) -> list[tuple[int, int]]:
    """Blocks of rows of W, from the last ones up, each as large as all before it.

    The last rows are the most telling: they measure the variation of a feature that the others leave unexplained, of
    which a component has little, and points of other components have much.
    """
    if d < 2 * SMALLEST_PART:
        return [(0, d)]
    parts = [(d - SMALLEST_PART, d)]
    while (start := parts[-1][0]) > 0:
        parts.append((max(0, start - max(SMALLEST_PART, d - start)), start))
    return parts
