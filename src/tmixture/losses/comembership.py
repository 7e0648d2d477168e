"""A contrastive loss in which rows are positives of each other to the degree that they belong together."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.utils import common_functions
from torch import Tensor

from tmixture.losses.terms import Terms


class CoMembershipLoss(BaseMetricLossFunction):
    """Cross-entropy between who belongs together and who is near: −Σ_j q_ij·log softmax_j(s_ij/temperature).

    q_ij ∝ Σ_k p_ik·p_jk is the probability that rows i and j are of one class, where p are memberships, with a sum over
    j of one; s is the similarity. Nothing is cut at a threshold: an uncertain row pulls a little at all that it may
    belong to. With memberships of 0 and 1 it is the loss of Khosla et al. 2020 (SupCon).

    As the `loss` of a `ClusterLoss` it takes the mixture's posterior.

    Args:
        temperature: of the similarities.
        posterior_temperature: T in p ∝ (π_k·T_k(x))^(1/T). In many dimensions a posterior is surer than it is right; on
            the images tried, flattening it gained nothing all the same, and a T of 8 made all classes alike.
        **kwargs: distance (cosine similarity if None), reducer and regularizer, as of all losses.
    """

    def __init__(self, temperature: float = 0.2, posterior_temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in (("temperature", temperature), ("posterior_temperature", posterior_temperature)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value!r}")
        self.temperature = temperature
        self.posterior_temperature = posterior_temperature

    def extra_repr(self) -> str:
        """Its temperatures."""
        return f"temperature={self.temperature}, posterior_temperature={self.posterior_temperature}"

    def memberships(self, log_joint: Tensor) -> Tensor:
        """Posteriors p (n, K) from log π_k + log T_k(x) (n, K)."""
        return (log_joint / self.posterior_temperature).softmax(1)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Terms:
        """The terms for labels (B,) and (M,); tuples are not taken."""
        common_functions.indices_tuple_not_supported(indices_tuple)
        assert labels is not None
        assert ref_labels is not None
        names, numbers = torch.cat([labels, ref_labels]).unique(return_inverse=True)
        one_hot = torch.nn.functional.one_hot(numbers, len(names)).to(embeddings)
        apart = ref_labels is not labels
        return self.soft_terms(embeddings, one_hot[: len(labels)], ref_emb, one_hot[len(labels) :], apart=apart)

    def soft_terms(
        self, embeddings: Tensor, memberships: Tensor, ref_emb: Tensor, ref_memberships: Tensor, *, apart: bool
    ) -> Terms:
        """The terms for memberships.

        Args:
            embeddings: (B, d).
            memberships: (B, K).
            ref_emb: (M, d).
            ref_memberships: (M, K).
            apart: whether row i of `ref_emb` is another row than row i of `embeddings`.
        """
        logits = self.distance(embeddings, ref_emb) / self.temperature
        logits = logits if self.distance.is_inverted else -logits
        together = memberships @ ref_memberships.T
        if not apart:
            self_pairs = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(self_pairs, torch.finfo(logits.dtype).min)
            together = together.masked_fill(self_pairs, 0)
        total = together.sum(1, keepdim=True)
        share = together / total.clamp(min=torch.finfo(together.dtype).tiny)
        losses = -(share * logits.log_softmax(1)).sum(1)
        rows = (total[:, 0] > 0).nonzero()[:, 0]
        if len(rows) == 0:
            return self.zero_losses()
        return {"loss": {"losses": losses[rows], "indices": rows, "reduction_type": "element"}}

    def get_default_distance(self) -> CosineSimilarity:
        """Cosine similarity."""
        return CosineSimilarity()
