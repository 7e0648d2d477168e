"""What a training loop may want to log of a cluster loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossStatistics:
    """Of one call. Tensors stay on their device until `read`, so that recording costs no synchronisation.

    Attributes:
        labels: (n,) pseudo-labels used, those of a memory included; None while the mixture warms up.
        confidence: (n,) responsibilities of the assigned components.
        tuples: number of terms that were reduced: triplets of a triplet loss, pairs or anchors of others.
        churn: share of points whose cluster changed when the mixture was last updated.
    """

    labels: Tensor | None = None
    confidence: Tensor | None = None
    tuples: int = 0
    churn: Tensor | float = 0.0

    def read(self) -> dict[str, float]:
        """The numbers to log.

        - `tuples`: as above.
        - `active_clusters`: number of clusters with a point.
        - `perplexity`: exp of the entropy of the cluster frequencies: the number of clusters of equal size that would
          be as diverse.
        - `confidence`: mean responsibility of the assigned components.
        - `churn`: as above.
        """
        statistics = dict.fromkeys(("tuples", "active_clusters", "perplexity", "confidence", "churn"), 0.0)
        statistics.update(tuples=float(self.tuples), churn=float(self.churn))
        if self.labels is not None and self.confidence is not None and len(self.labels):
            share = torch.bincount(self.labels).double() / len(self.labels)
            entropy = torch.special.entr(share).sum()
            values = torch.stack([(share > 0).sum(), entropy.exp(), self.confidence.double().mean()])
            statistics.update(zip(("active_clusters", "perplexity", "confidence"), values.tolist()))
        return statistics
