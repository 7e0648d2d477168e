"""Fitting a mixture anew while its clusters keep their identity, and fitting one to a single batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tmixture import StudentTMixture
from tmixture.distributed import sum_in_place
from tmixture.losses.matching import churn, contingency, match_components


@torch.no_grad()
def refit_mixture(mixture: StudentTMixture, data: Any) -> float:
    """Fit to the data, and number the clusters after the old ones with which they share the most points.

    Args:
        mixture: fitted or not; `mixture.warm_start` says whether the fit starts from scratch.
        data: anything that `mixture.fit` takes.

    Returns:
        Churn: the share of the points that changed their cluster. Zero for the first fit.
    """
    old = mixture.predict(data) if bool(mixture.fitted) else None
    mixture.fit(data)
    if old is None:
        return 0.0
    table = contingency(old, mixture.predict(data), mixture.n_components)
    if mixture.distributed:
        sum_in_place([table])
    order = match_components(table)
    mixture.reorder(order)
    return churn(table[:, order])


def fit_to_batch(template: StudentTMixture, batch: Tensor, n_rows: int, distributed: bool) -> StudentTMixture:
    """A mixture with the template's settings, fitted to one batch alone, with as many components as the batch allows.

    Args:
        template: of its settings all but the number of components and per-component values are taken.
        batch: (n, d), this process's share.
        n_rows: rows of the batch in all processes.
        distributed: whether the processes fit it together.
    """
    per_batch = {
        "n_components": components_for_batch(n_rows),
        "dof": float(template.initial_dof[0]),
        "init": template.init if isinstance(template.init, str) else "kmeans",
        "max_candidates": None,
        "distributed": distributed,
        "device": batch.device,
    }
    return StudentTMixture(**{**template.settings(), **per_batch}).fit(batch)


def components_for_batch(n_rows: int) -> int:
    """K for a batch of n rows, as in the released code of CXR-CML: 2 below 10, at most 5 below 50, at most 40."""
    if n_rows < 10:
        return min(2, n_rows)
    return min(5, n_rows // 3) if n_rows < 50 else min(40, n_rows // 4)
