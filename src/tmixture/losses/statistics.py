"""What a training loop may want to log of a cluster loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tmixture.losses.health import effective_rank, mean_cosine, perplexity

NAMES = (
    "tuples",
    "active_clusters",
    "active_share",
    "perplexity",
    "confidence",
    "churn",
    "readiness",
    "at_margin",
    "mean_cosine",
    "effective_rank",
)


@dataclass(frozen=True)
class LossStatistics:
    """Of one call. Tensors stay on their device until `read`, so that recording costs no synchronisation.

    Attributes:
        n_components: K of the mixture.
        labels: (n,) pseudo-labels used, those of a memory included; None while the mixture warms up.
        confidence: (n,) responsibilities of the assigned components.
        embeddings: (n, d), of the call.
        at_margin: share of the terms that are what they would be if all embeddings were one point; of triplet losses.
        readiness: what the loss was multiplied with.
        tuples: number of terms that were reduced: triplets of a triplet loss, pairs or anchors of others.
        churn: share of points whose cluster changed when the mixture was last updated.
    """

    n_components: int = 1
    labels: Tensor | None = None
    confidence: Tensor | None = None
    embeddings: Tensor | None = None
    at_margin: Tensor | float = 0.0
    readiness: Tensor | float = 1.0
    tuples: int = 0
    churn: Tensor | float = 0.0

    def read(self) -> dict[str, float]:
        """The numbers to log.

        - `tuples`: as above.
        - `active_clusters`: number of clusters with a point.
        - `active_share`: that number over the one that n points would find of K clusters of equal size,
          K(1 − (1 − 1/K)ⁿ): near 1 with few points as with many.
        - `perplexity`: exp of the entropy of the cluster frequencies: the number of clusters of equal size that would
          be as diverse.
        - `confidence`: mean responsibility of the assigned components.
        - `churn`, `readiness`, `at_margin`: as above. Near 1, the last says that the embeddings are one point.
        - `mean_cosine` of two embeddings, and `effective_rank`: how many directions they fill. Both are healthy far
          from 1.
        """
        numbers = dict.fromkeys(NAMES, 0.0)
        numbers.update(
            tuples=float(self.tuples),
            churn=float(self.churn),
            readiness=float(self.readiness),
            at_margin=float(self.at_margin),
        )
        if self.embeddings is not None and len(self.embeddings):
            numbers["mean_cosine"] = float(mean_cosine(self.embeddings))
            numbers["effective_rank"] = float(effective_rank(self.embeddings))
        if self.labels is not None and self.confidence is not None and len(self.labels):
            K, n = self.n_components, len(self.labels)
            numbers["active_clusters"] = float(len(self.labels.unique()))
            numbers["active_share"] = numbers["active_clusters"] / (K * (1 - (1 - 1 / K) ** n))
            numbers["perplexity"] = float(perplexity(self.labels))
            numbers["confidence"] = float(self.confidence.double().mean())
        return numbers
