"""Keeping the identity of clusters: components of two fits are matched by the points that they share."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def contingency(old: Tensor, new: Tensor, n_components: int) -> Tensor:
    """Number of points with each pair of labels: (N,), (N,) → (K, K), old labels along the rows."""
    pairs = torch.bincount(old * n_components + new, minlength=n_components**2)
    return pairs.reshape(n_components, n_components)


def match_components(table: Tensor) -> Tensor:
    """The new component that inherits the identity of each old one: (K, K) → (K,).

    The one-to-one assignment under which the most points keep their label (Kuhn 1955, the Hungarian method).

    Args:
        table: number of points with each pair of labels, old ones along the rows.
    """
    _, new = linear_sum_assignment(table.cpu().numpy(), maximize=True)
    return torch.from_numpy(new).to(table.device)


def churn(table: Tensor) -> float:
    """Share of the points that are off the diagonal of a contingency table: those whose label changed."""
    stayed, total = table.diagonal().sum().item(), table.sum().item()
    return 1 - stayed / total
