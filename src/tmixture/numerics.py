"""In which dtype numbers are kept and added up: float64 where the device has it."""

from __future__ import annotations

import torch
from torch import Tensor

# Rows that may be summed in float32 before float64 takes over.
SUM_ROWS = 512


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype of statistics and of K-sized constants: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def exact(x: Tensor) -> Tensor:
    """The same numbers in the dtype of statistics."""
    return x if x.dtype is torch.float64 else x.to(accumulation_dtype(x.device))


def cross_moments(a: Tensor, b: Tensor) -> Tensor:
    """Σ_i a_i·b_iᵀ over rows: (n, p), (n, q) → (p, q), in the dtype of statistics.

    A product of tall matrices in float32 may add its rows one after the other and end with an error of 1e-5, which the
    cancellation in a variance then multiplies. Only `SUM_ROWS` rows are added in the dtype of the rows.
    """
    if a.dtype is torch.float64:
        return a.T @ b
    total = exact(a.new_zeros(a.shape[1], b.shape[1]))
    for rows, others in zip(a.split(SUM_ROWS), b.split(SUM_ROWS)):
        total += rows.T @ others
    return total


def column_sums(a: Tensor) -> Tensor:
    """Σ_i a_i over rows: (n, p) → (p,), in the dtype of statistics, in which sums of a few rows are added."""
    if a.dtype is torch.float64:
        return a.sum(0)
    few = 16  # with many columns, float64 alone takes ten times as long
    whole = len(a) - len(a) % few
    return exact(a[:whole].unflatten(0, (-1, few)).sum(1)).sum(0) + a[whole:].sum(0)
