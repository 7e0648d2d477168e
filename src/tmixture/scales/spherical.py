"""Spherical scale matrices: one variance per component."""

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


@dataclass(frozen=True)
class SphericalScale(ExpandedScale):
    """Σ_k = I/whitening_k².

    With features [x, ‖x‖²], distances and statistics of a chunk are one matrix product each.
    """

    whitening: Tensor
    """(K,): reciprocal standard deviations."""

    covariance_type: ClassVar[str] = "spherical"
    correlates: ClassVar[bool] = False
    constraints: ClassVar[dict[str, Constraint]] = {"whitening": constraints.positive}

    @staticmethod
    def width(n_features: int) -> int:
        return n_features + 1

    @staticmethod
    def further_features(x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.sum(x.square(), dim=-1, keepdim=True, out=out)

    def whiten(self, x: Tensor, components: Tensor) -> Tensor:
        return x * self.whitening[components][..., None]

    def expansion(self, means: Tensor) -> tuple[Tensor, Tensor]:
        precision = self.whitening.square()[..., None]
        slope = precision * means
        return torch.cat([-2 * slope, precision], dim=-1), (slope * means).sum(-1)

    def half_log_det(self, n_features: int) -> Tensor:
        return -n_features * exact(self.whitening).log()

    def precisions(self, n_features: int) -> Tensor:
        return exact(self.whitening).square()[:, None]

    def dense(self, n_components: int, n_features: int) -> Tensor:
        variance = self.whitening.square().reciprocal()
        return torch.diag_embed(variance[:, None].expand(n_components, n_features))

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        return noise / self.whitening[component, None]

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        return (n_components,)

    @staticmethod
    def squares(moments: Tensor) -> Tensor:
        return moments[:, -1]

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        return scatter + ((2 * first + mass[:, None] * delta) * delta).sum(1)

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        return type(self)((denominator * n_features / (scatter.clamp(min=0) + added.sum(1))).sqrt())

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        return n_features * weights / self.whitening.square()

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        return cls(variance.mean(1).rsqrt())

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        return cls(matrices.diagonal(dim1=1, dim2=2).mean(1).rsqrt())

    def n_parameters(self, n_components: int, n_features: int) -> int:
        return n_components

    def marginal(self, features: Tensor, n_features: int) -> Self:
        return self

    def variances(self, n_features: int) -> Tensor:
        return self.whitening.square().reciprocal()[:, None]
