"""What means are held at and scales shrink to: rows that are added to the statistics before an M-step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture.density import Density
from tmixture.numerics import accumulation_dtype
from tmixture.parameters import Parameters
from tmixture.scales import Scale
from tmixture.scales.base import Moments, Shares
from tmixture.statistics import SufficientStatistics


@dataclass(frozen=True)
class Anchors:
    """Points that means are held at, as by so many rows of latent precision one that count for nothing else.

    The prior of component k is exp(−½·rows_k·(μ_k − m_k)ᵀ Σ_k⁻¹ (μ_k − m_k)).

    Attributes:
        means: (K, d), m.
        rows: (K,), zero where nothing is held.
    """

    means: Tensor
    rows: Tensor

    def distances(self, parameters: Parameters) -> Tensor:
        """rows_k·(μ_k − m_k)ᵀ Σ_k⁻¹ (μ_k − m_k): (K,)."""
        density = Density(parameters, accumulation_dtype(parameters.means.device))
        return self.rows * density.mahalanobis(density.features(self.means)).diagonal()

    def scatter(self, old: Parameters, means: Tensor, weight: Tensor) -> Tensor:
        """What they add to the scatter about new means (K, d), in the structure's form.

        Args:
            old: the parameters under which the E-step was done.
            means: (K, d).
            weight: (K,).
        """
        scale, origin = old.scale.to(means.dtype), old.means.to(means.dtype).mean(0)
        centred, none_apart = old.means.to(means.dtype) - origin, torch.empty(0, dtype=torch.long, device=means.device)
        sums = SufficientStatistics.about_origin(scale, origin, centred, scale.reference(centred, none_apart))
        sums.mass += weight
        shares = Shares(torch.zeros_like(weight.diag()), weight.diag())
        moments = Moments(sums.first, sums.scatter, centred, none_apart)
        scale.accumulate(moments, scale.features(self.means - origin), shares)
        return sums.about(scale, means).scatter


@dataclass(frozen=True)
class Shrinkage:
    """A matrix S that scales shrink to: the prior exp(−½·rows·[log|Σ_k| + tr(Σ_k⁻¹ S)]) of each component.

    Attributes:
        root: (d, d), points whose second moments about zero add up to S.
        rows: how many rows S counts for.
    """

    root: Tensor
    rows: float

    def traces(self, scale: Scale, n_components: int) -> Tensor:
        """Rows·tr(Σ_k⁻¹ S): (K,)."""
        scale = scale.to(self.root.dtype)
        origin = self.root.new_zeros(n_components, self.root.shape[1])
        return self.rows * scale.mahalanobis(scale.features(self.root), origin).sum(0)

    def scatter(self, scale: Scale, weight: Tensor, expansion: Tensor) -> Tensor:
        """Expansion·weight·S, in the structure's form.

        Args:
            scale: under which the E-step was done.
            weight: (K,), of these rows.
            expansion: (K,), the latent precision that they have.
        """
        points = torch.cat([self.root, -self.root])  # whose mean is zero
        none_apart = torch.empty(0, dtype=torch.long, device=points.device)
        zeros = points.new_zeros(len(weight), points.shape[1])
        scatter = points.new_zeros(scale.scatter_shape(*zeros.shape))
        scale = scale.to(points.dtype)
        each, half = (part.expand(len(points), -1) for part in (weight / len(points), weight * expansion / 2))
        scale.accumulate(Moments(zeros.clone(), scatter, zeros, none_apart), scale.features(points), Shares(each, half))
        return scatter
