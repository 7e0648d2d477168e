"""What the structures share whose distances are expanded squares: components too far away for that."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from tmixture.data.chunks import CACHED_ELEMENTS
from tmixture.scales.base import Distances, Moments, Scale, Shares
from tmixture.scales.pairs import add_pairs, pairs_of, rows_at, weighted_sums


class ExpandedScale(Scale):
    """Scales that take distances and moments of a chunk by one matrix product each, from the features [x, squares].

    That loses the digits of components that lie many of their standard deviations from the origin. In high dimension
    tight clusters easily do. But there hardly any row concerns more than one or two components, so that the few pairs
    of a row and such a component that matter can be treated by differences, whatever the number of components.
    """

    expands_squares: ClassVar[bool] = True
    separates: ClassVar[bool] = True

    @abstractmethod
    def whiten(self, x: Tensor, components: Tensor) -> Tensor:
        """Row i times the whitening of component i: (…, d), (…,) → (…, d)."""

    @staticmethod
    @abstractmethod
    def squares(moments: Tensor) -> Tensor:
        """The part of `moments` (m, p) that belongs to the scatter: its first dimension is m."""

    @abstractmethod
    def expansion(self, means: Tensor) -> tuple[Tensor, Tensor]:
        """What turns features f into distances b_k·f + c_k from means (…, K, d): b (…, K, p) and c (…, K)."""

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        return _expanded(features, *self.expansion(means))

    def expanded_terms(self, means: Tensor) -> Tensor:
        return self.expansion(means)[1]

    def distances_from(self, means: Tensor) -> Distances:
        return ExpandedDistances(self, means)

    def mahalanobis_of_pairs(self, features: Tensor, means: Tensor, rows: Tensor, components: Tensor) -> Tensor:
        centred = features[:, : means.shape[1]].index_select(0, rows).sub_(rows_at(means, components))
        return self.whiten(centred, components).square_().sum(1)

    def reference(self, means: Tensor, apart: Tensor) -> Tensor | None:
        return torch.zeros_like(means).index_copy(0, apart, means[apart]) if len(apart) else None

    def accumulate(self, moments: Moments, features: Tensor, shares: Shares) -> None:
        sums = self.moments(features, shares.weight, moments.means, moments.apart)
        self.add_moments(moments.first, moments.scatter, sums)

    def add_moments(self, first: Tensor, scatter: Tensor, moments: Tensor) -> None:
        """Add moments (K, p) to the two statistics, in place."""
        first += moments[:, : first.shape[1]]
        scatter += self.squares(moments)

    def add_points(self, moments: Tensor, y: Tensor, components: Tensor, weight: Tensor) -> None:
        """Add weight_m·[y_m, squares of y_m] to moments[components_m], in place.

        Args:
            moments: (K, p), in float64 where the device has it.
            y: (m, d), points about the references of their components.
            components: (m,), in ascending order.
            weight: (m,).
        """
        add_pairs(moments, self.features(y), torch.arange(len(y), device=y.device), components, weight)

    def moments(self, features: Tensor, weight: Tensor, means: Tensor, apart: Tensor) -> Tensor:
        """Σ_i weight_ik·[y, squares of y] with y = x_i − reference_k: (K, p), in float64 where the device has it."""
        if len(apart) == 0:
            return weighted_sums(weight, features)
        moments = weighted_sums(weight.index_fill(1, apart, 0), features)
        row, which, value = pairs_of(rows_at(weight.T, apart).T)
        block = max(1, CACHED_ELEMENTS // features.shape[1])
        for rows, owner, w in zip(row.split(block), apart[which].split(block), value.split(block)):
            y = features[:, : means.shape[1]].index_select(0, rows).sub_(rows_at(means, owner))
            self.add_points(moments, y, owner, w)
        return moments


class ExpandedDistances(Distances):
    """Distances whose expansion is prepared."""

    coefficients: Tensor

    def __init__(self, scale: ExpandedScale, means: Tensor) -> None:
        super().__init__(scale, means)
        self.coefficients, self.terms = scale.expansion(means)

    def of(self, features: Tensor) -> Tensor:
        return _expanded(features, self.coefficients, self.terms)


def _expanded(features: Tensor, coefficients: Tensor, constants: Tensor) -> Tensor:
    """Distances (…, n, K) from features (…, n, p), coefficients (…, K, p) and constants (…, K), never negative."""
    if features.dim() == 2:
        # With the rows innermost, products with few columns take a CPU half to a sixth of the time, and so do sums.
        return torch.addmm(constants[:, None], coefficients, features.T).clamp_(min=0).T
    return torch.baddbmm(constants[:, None], features, coefficients.mT).clamp_(min=0)
