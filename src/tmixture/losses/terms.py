"""The terms of a pytorch-metric-learning loss, on their way to its reducer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Terms = dict[str, dict[str, Any]]
"""By name: the "losses", the "indices" of the embeddings they belong to, and the "reduction_type"."""

REGULARIZATION = ("embedding_reg_loss", "weight_reg_loss")


def weigh_anchors(terms: Terms, weights: Tensor) -> Terms:
    """Multiply each term with the weight of its anchor; regularization is left as it is.

    Args:
        terms: of one loss.
        weights: (B,), of the embeddings.

    Raises:
        ValueError: the loss has no terms of single anchors.
    """
    return {name: info if name in REGULARIZATION else _weighed(name, info, weights) for name, info in terms.items()}


def _weighed(name: str, info: dict[str, Any], weights: Tensor) -> dict[str, Any]:
    losses, indices, kind = info["losses"], info["indices"], info["reduction_type"]
    if not isinstance(losses, Tensor):  # the zero of a loss without tuples
        return info
    if kind == "already_reduced":
        raise ValueError(f"weights cannot be applied: {name!r} of this loss is one number for the whole batch")
    anchors = indices if kind == "element" else indices[0]
    factors = weights[anchors].to(losses)
    return {**info, "losses": losses * factors.reshape(-1, *[1] * (losses.dim() - 1))}


def share_at_margin(terms: Terms, margin: float) -> Tensor | float:
    """The share of the terms within a twentieth of the margin, as all of them are where all distances are equal."""
    losses = terms["loss"]["losses"] if "loss" in terms else None
    if not isinstance(losses, Tensor) or losses.numel() == 0:
        return 0.0
    return ((losses.detach() - margin).abs() < margin / 20).double().mean()


def count_terms(terms: Terms) -> int:
    """Number of triplets, pairs or anchors with a term; regularization apart."""
    losses = [info["losses"] for info in terms.values() if info["reduction_type"] != "already_reduced"]
    return sum(loss.numel() for loss in losses if isinstance(loss, Tensor))
