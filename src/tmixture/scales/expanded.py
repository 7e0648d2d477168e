"""What the structures share whose distances are expanded squares: components too far away for that."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from tmixture.scales.base import EXPANDED_LIMIT, Scale, cross_moments


class ExpandedScale(Scale):
    """Scales that take distances and moments of a chunk by one matrix product each, from the features [x, squares].

    That loses the digits of components that lie many of their standard deviations from the origin. In high dimension
    tight clusters easily do. But there hardly any row concerns more than one or two components, so that the few pairs
    of a row and such a component that matter can be treated by differences, whatever the number of components.
    """

    @abstractmethod
    def whiten(self, x: Tensor, components: Tensor) -> Tensor:
        """Row i times the whitening of component i: (m, d), (m,) → (m, d)."""

    def apart(self, means: Tensor) -> Tensor:
        everyone = torch.arange(len(means), device=means.device)
        return everyone[self.whiten(means, everyone).square().mean(1) > EXPANDED_LIMIT]

    def mahalanobis_of_pairs(self, features: Tensor, means: Tensor, rows: Tensor, components: Tensor) -> Tensor:
        centred = features[rows, : means.shape[1]].sub_(means[components])
        return self.whiten(centred, components).square().sum(1)

    def reference(self, means: Tensor) -> Tensor:
        apart = self.apart(means)
        return torch.zeros_like(means).index_copy(0, apart, means[apart])

    def moments(self, features: Tensor, weight: Tensor, means: Tensor) -> Tensor:
        """Σ_i weight_ik·[y, squares of y] with y = x_i − reference_k: (K, p)."""
        moments = cross_moments(weight, features)
        apart = self.apart(means)
        if len(apart):
            rows, which = weight[:, apart].nonzero(as_tuple=True)
            centred = features[rows, : means.shape[1]].sub_(means[apart[which]])
            shares = weight.new_zeros(len(rows), len(apart))
            shares.scatter_(1, which[:, None], weight[rows, apart[which]][:, None])
            moments[apart] = cross_moments(shares, self.features(centred))
        return moments
