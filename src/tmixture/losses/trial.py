"""Whether a loss of pytorch-metric-learning can do what is asked of it, found out before any training."""

from __future__ import annotations

import copy

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

from tmixture.losses.comembership import CoMembershipLoss
from tmixture.losses.terms import weigh_anchors


def check_combination(
    loss: BaseMetricLossFunction,
    miner: BaseMiner | None,
    n_components: int,
    n_features: int,
    *,
    memory: bool,
    weights: bool,
) -> None:
    """Try a copy of the loss on a few random rows, as a cluster loss would call it.

    A loss with parameters of which none is as wide as the rows is not tried: it is for embeddings of another width,
    which are known with the first batch.

    Args:
        loss: to be wrapped.
        miner: whose tuples it gets, or None.
        n_components: number of labels.
        n_features: width of the rows.
        memory: whether there are further rows that positives and negatives are taken from.
        weights: whether each anchor's term is multiplied by a weight.

    Raises:
        ValueError: the loss raises an error, which the message quotes.
    """
    parameters = list(loss.parameters())
    if n_components < 2 or (parameters and not any(n_features in parameter.shape for parameter in parameters)):
        return
    example = parameters[0] if parameters else torch.empty(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, n_features, generator=generator).to(example)
    last = n_components - 1
    labels = torch.tensor([0, 1, last, 0, 1, last, 0, 1, last, 0, 1, 0], device=x.device)  # clusters differ in size
    asked = [type(miner).__name__] if miner is not None else []
    asked += ["memory_size"] * memory + ["weights"] * weights + [f"n_components={n_components}"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            loss, miner = copy.deepcopy(loss), copy.deepcopy(miner)
            ref_emb, ref_labels = (torch.cat([x, -x]), torch.cat([labels, labels])) if memory else (x, labels)
            tuples = None if miner is None else miner(x, labels, ref_emb, ref_labels)
            if memory and tuples is None and not isinstance(loss, CoMembershipLoss):
                tuples = get_all_pairs_indices(labels, ref_labels)
            terms = loss.compute_loss(x, labels, tuples, ref_emb, ref_labels)
            if weights:
                terms = weigh_anchors(terms, torch.ones(len(x), device=x.device))
            loss.reducer(terms, x, labels)
        except Exception as error:
            raise ValueError(f"{type(loss).__name__} cannot be used with {', '.join(asked)}: {error}") from error
