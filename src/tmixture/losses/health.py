"""Whether clusters and embeddings are alive, and what to do if not."""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.losses.rows import unit_rows

# Churn at and below which clusters count as stable, and from which on they say nothing.
STABLE_CHURN, RESTLESS_CHURN = 0.4, 0.8
# By what share of the way readiness goes at each refit.
READINESS_RATE = 0.34
# Embeddings that point this much in one direction, on average, are one point.
ONE_POINT = 0.999
# … and so are those that once filled so many times more directions, and now point in one this much.
SHRUNKEN, ONE_CONE = 4.0, 0.9
# Of that many clusters of equal size as K clusters at best are, so small a share is a collapse.
FEW_CLUSTERS = 0.25


def mean_cosine(x: Tensor) -> Tensor:
    """The mean cosine of two different rows (n, d)."""
    units, n = unit_rows(x.detach()), len(x)
    return (units.sum(0).square().sum() - units.square().sum()) / max(1, n * (n - 1))


def effective_rank(x: Tensor) -> Tensor:
    """How many directions the rows (n, d) fill: exp of the entropy of the eigenvalues of their second moment.

    Of rows divided by their norms (Roy & Vetterli 2007, with eigenvalues for singular values).
    """
    units = unit_rows(x.detach()).double()
    moment = units.T @ units if len(units) > units.shape[1] else units @ units.T
    values = torch.linalg.eigvalsh(moment).clamp(min=0)
    return torch.special.entr(values / values.sum().clamp(min=1e-30)).sum().exp()


def perplexity(labels: Tensor) -> Tensor:
    """Exp of the entropy of the frequencies of labels (n,): how many of equal size would be as diverse."""
    share = torch.bincount(labels).double() / max(1, len(labels))
    return torch.special.entr(share).sum().exp()


def readier(readiness: Tensor, churn: float) -> Tensor:
    """Readiness after a refit at which this share of the points changed their cluster: between 0 and 1."""
    stable = (RESTLESS_CHURN - churn) / (RESTLESS_CHURN - STABLE_CHURN)
    return readiness.lerp(torch.full_like(readiness, min(1.0, max(0.0, stable))), READINESS_RATE)


def complaint(rows: Tensor, labels: Tensor, n_components: int, widest: float) -> str | None:
    """What is wrong with recent embeddings, and with the clusters of those that a mixture was fitted to, if anything.

    Args:
        rows: (n, d), the newest embeddings.
        labels: (m,), clusters.
        n_components: K.
        widest: the largest effective rank so far.
    """
    cosine, rank = float(mean_cosine(rows)), float(effective_rank(rows))
    if cosine > ONE_POINT or (cosine > ONE_CONE and rank < widest / SHRUNKEN):
        return (
            f"the embeddings have collapsed: their mean cosine is {cosine:.4f} and they fill {rank:.1f} directions "
            f"(up to {widest:.1f} before). A loss on clusters needs another loss beside it that keeps embeddings "
            "apart; if there is one, give this one a smaller weight."
        )
    used = float(perplexity(labels))
    if len(labels) >= 10 * n_components and used < FEW_CLUSTERS * n_components:
        return (
            f"the clusters have collapsed: {n_components} of them are as diverse as {used:.1f} of equal size. Use "
            "fewer components, or a window of more rows; with refit='streaming' the mixture may lag behind embeddings "
            "that move: use refit=10."
        )
    return None
