"""Arrays of any library as dense tensors of real numbers that torch computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.masked import MaskedTensor

PLAIN = {
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
# What torch can store but hardly compute with, and a dtype that holds the same numbers: of the largest integers all
# below 2⁵³, and data must be below 10¹⁵.
WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.float64} | {
    getattr(torch, name): torch.float32
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
}


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor of the same numbers, copied only where torch has to: read-only, foreign or reversed arrays.

    Args:
        value: a tensor, an array, or numbers in lists.
        name: of the argument.

    Raises:
        ValueError: the value is sparse or masked, or holds something other than real numbers; the message names it.
    """
    check_dense(value, name)
    if isinstance(value, Tensor):
        return value.to(WIDER.get(value.dtype, value.dtype))
    if not hasattr(value, "__array__"):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name} must be a tensor or an array of numbers, got {value!r}") from error
    array = np.ascontiguousarray(value)
    check_dense(array, name)
    if not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return as_tensor(torch.from_numpy(array), name)


def as_array(rows: list[Any] | tuple[Any, ...], name: str) -> np.ndarray:
    """An array of rows in lists, with the masks that some may have."""
    try:
        return np.ma.asarray(rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must have rows of numbers of the same length: {error}") from error


def check_dense(value: Any, name: str) -> None:
    """Raise a `ValueError` for a tensor or an array that does not hold one real number after the other."""
    if isinstance(value, Tensor):
        if isinstance(value, MaskedTensor):
            raise ValueError(f"{name} must not be masked, got a MaskedTensor: its to_tensor(value) fills the gaps")
        if value.layout is not torch.strided or value.is_nested:
            raise ValueError(f"{name} must be dense, got a tensor of layout {value.layout}: to_dense() makes it so")
        if value.dtype not in PLAIN and value.dtype not in WIDER:
            raise ValueError(f"{name} must hold real numbers, got dtype {value.dtype}")
    elif isinstance(value, np.ndarray):
        if np.ma.is_masked(value):
            raise ValueError(f"{name} must not have masked entries: drop their rows, or fill them by filled(value)")
        if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
            raise ValueError(f"{name} must hold real numbers, got dtype {value.dtype}")
    elif scipy.sparse.issparse(value):
        raise ValueError(f"{name} must be dense, got a sparse {type(value).__name__}: its toarray() is dense")


def check_finite(x: Tensor, first_row: int, name: str, *, allow_missing: bool = False) -> None:
    """Raise a `ValueError` that names the first row of `x` with a value that cannot be computed with.

    NaN is one, unless it says that a value is missing.
    """
    if allow_missing:
        x = x.nan_to_num(0.0, posinf=torch.inf, neginf=-torch.inf)
    # Sums of squares of a chunk must not overflow in float32. One number for all rows first: it needs no temporaries.
    if x.numel() == 0 or max(abs(extreme) for extreme in torch.stack(x.aminmax()).tolist()) < 1e15:
        return
    bad = ~(x.to(torch.promote_types(x.dtype, torch.float32)).abs().amax(1) < 1e15)
    if bad.any():
        row = int(bad.nonzero()[0])
        columns = (~(x[row].abs() < 1e15)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{name} must be finite and below 1e15 in magnitude, but row {first_row + row} holds "
            f"{x[row, columns[0]].item()} in column {columns[0]}"
        )
