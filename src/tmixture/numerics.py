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
    few = len(a) - len(a) % SUM_ROWS
    if a.dtype is torch.float64 or few == 0:
        return exact(a.T @ b)
    blocks = torch.bmm(a[:few].T.unflatten(1, (-1, SUM_ROWS)).transpose(0, 1), b[:few].unflatten(0, (-1, SUM_ROWS)))
    total = blocks.sum(0, dtype=accumulation_dtype(a.device))
    return total if few == len(a) else total + a[few:].T @ b[few:]


def column_sums(a: Tensor) -> Tensor:
    """Σ_i a_i over rows: (n, p) → (p,), in the dtype of statistics. Torch sums in pairs, which loses no digits."""
    return exact(a.sum(0))
