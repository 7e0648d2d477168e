"""Fitting a mixture anew while its clusters keep their identity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tmixture import StudentTMixture
from tmixture.distributed import sum_in_place
from tmixture.losses.matching import churn, contingency, match_components


@torch.no_grad()
def refit_mixture(mixture: StudentTMixture, data: Any, labels: Tensor | None = None) -> float:
    """Fit to the data, and number the clusters after the old ones with which they share the most points.

    Args:
        mixture: fitted or not; `mixture.warm_start` says whether the fit starts from scratch.
        data: anything that `mixture.fit` takes.
        labels: (N,), known ones, which say what each cluster is; −1 where unknown.

    Returns:
        Churn: the share of the points that changed their cluster. Zero for the first fit.
    """
    old = mixture.predict(data) if mixture.is_fitted else None
    mixture.fit(data, labels=labels)
    if old is None:
        return 0.0
    table = contingency(old, mixture.predict(data), mixture.n_components)
    if mixture.distributed:
        sum_in_place([table])
    order = match_components(table) if labels is None else torch.arange(len(table), device=table.device)
    mixture.reorder(order)
    return churn(table[:, order])
