"""Clusters of several components: those that share rows are merged, two at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.special import entr

from tmixture import validation
from tmixture.data.chunks import Data
from tmixture.model import MixtureModel


@dataclass(frozen=True)
class Merging:
    """The outcome of `merge_components`: a tree with the components as its leaves.

    Attributes:
        linkage: (K − 1, 4), as of `scipy.cluster.hierarchy.linkage`: the two clusters of each merge (component k is
            cluster k, what step s makes is cluster K + s), the entropy that is gone after it, and how many components
            are in the new cluster.
        entropies: (K,) the mean entropy, in nats a row, of the assignment to K, K − 1 … 1 clusters. Where it stops
            falling steeply, the components that belonged together are merged.
    """

    linkage: np.ndarray
    entropies: np.ndarray

    @property
    def n_components(self) -> int:
        """K."""
        return len(self.entropies)

    def labels(self, n_clusters: int) -> list[int]:
        """The cluster 0 … n_clusters − 1 of each component, for `component_labels`; in the order of the components."""
        K = self.n_components
        if validation.positive_integer(n_clusters, "n_clusters") > K:
            raise ValueError(f"n_clusters must lie in 1 … n_components={K}, got {n_clusters}")
        clusters = {k: [k] for k in range(K)}
        for step, (one, other) in enumerate(self.linkage[: K - n_clusters, :2].astype(int)):
            clusters[K + step] = clusters.pop(one) + clusters.pop(other)
        labels = [0] * K
        for label, components in enumerate(sorted(clusters.values(), key=min)):
            for component in components:
                labels[component] = label
        return labels


@torch.no_grad()
def merge_components(mixture: MixtureModel, data: Data) -> Merging:
    """Merge the components of a mixture into clusters, those first that share most rows.

    A cluster that is no Student-t distribution is fitted best by several of them. As many components as BIC chooses
    describe the density; merging them tells how many clusters there are (Baudry, Raftery, Celeux, Lo & Gottardo 2010,
    "Combining mixture components for clustering"). Each step merges the two clusters of which that takes most from the
    entropy −Σ_i Σ_k r_ik·log r_ik of the assignment, per row of the two: without this division, which the source does
    not have, large clusters that touch are merged before the halves of a small one.

    Args:
        mixture: fitted.
        data: whatever `fit` takes. The responsibilities of all rows are held, (N, K): of many rows, give a sample.

    Returns:
        The order of the merges. `mixture.component_labels = merging.labels(n)` makes `class_probabilities` those of n
        clusters.

    Raises:
        RuntimeError: the mixture is not fitted.
        ValueError: there are no rows, or the mixture has a background.

    Examples:
        >>> x = torch.randn(1000, 2)
        >>> mixture = StudentTMixture(4, 2, generator=0).fit(x)
        >>> merge_components(mixture, x).labels(1)
        [0, 0, 0, 0]
    """
    if mixture.background:
        raise ValueError("mixture must have no background, which is no cluster to merge with others")
    # In float64: what two clusters share may be a small part of what each of them has.
    shares = mixture.in_chunks(mixture.responsibilities, data).double()
    if not len(shares):
        raise ValueError("data must have rows to tell which components share some, got none")
    K = shares.shape[1]
    clusters, sizes = list(range(K)), [1] * K
    left = torch.ones(K, dtype=torch.bool, device=shares.device)
    gains = torch.stack([_gains(shares, k) for k in range(K)])
    entropies, linkage = [float(entr(shares).sum(1).mean())], []
    for step in range(K - 1):
        rows = shares.mean(0)
        per_row = gains / (rows + rows[:, None]).clamp(min=torch.finfo(rows.dtype).tiny)
        pairs = (left & left[:, None]).triu(1)
        one, other = divmod(int(torch.where(pairs, per_row, -torch.inf).argmax()), K)
        entropies.append(entropies[-1] - float(gains[one, other]))
        sizes[one] += sizes[other]
        linkage.append([clusters[one], clusters[other], entropies[0] - entropies[-1], sizes[one]])
        clusters[one], left[other] = K + step, False
        shares[:, one] += shares[:, other]
        gains[one] = gains[:, one] = _gains(shares, one)
    return Merging(np.array(linkage).reshape(-1, 4), np.maximum(entropies, 0.0))  # the last is rounding


def _gains(shares: Tensor, k: int) -> Tensor:
    """What merging cluster k with each of the clusters (N, K) takes from the mean entropy: (K,), never negative."""
    own = shares[:, k, None]
    return (entr(shares) + entr(own) - entr(shares + own)).mean(0).clamp(min=0)
