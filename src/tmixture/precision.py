"""Arithmetic whose precision the surrounding training does not lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


def full_precision(device: torch.device, *, allow_tf32: bool = False) -> AbstractContextManager[None]:
    """A block without autocast, in which float32 products are computed in float32 whatever torch was told.

    Those who train with `torch.set_float32_matmul_precision("high")` want their network's products fast. A squared
    distance is a difference of such products, and a density its exponential, but TF32 keeps eleven bits of the factors
    and bfloat16 eight. Only a graph of `torch.compile` has the products that torch was told.

    Args:
        device: where the block computes.
        allow_tf32: whether a GPU computes them in TF32 instead.
    """
    if torch.compiler.is_compiling():
        return torch.autocast(device_type=device.type, enabled=False)
    return _float32_arithmetic(device, allow_tf32)


@contextmanager
def exact_arithmetic(device: torch.device, *, allow_tf32: bool = False) -> Iterator[None]:
    """`full_precision` without autograd, for tensors that may be used outside an enclosing inference mode."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(device, allow_tf32=allow_tf32):
        yield


@contextmanager
def _float32_arithmetic(device: torch.device, allow_tf32: bool) -> Iterator[None]:
    with torch.autocast(device_type=device.type, enabled=False), _products(device, "tf32" if allow_tf32 else "ieee"):
        yield


@contextmanager
def _products(device: torch.device, precision: str) -> Iterator[None]:
    """Products of float32 matrices in this precision, "ieee" or "tf32"; the latter on a GPU alone."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        told = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(told)
        return
    settings = {"cuda": torch.backends.cuda.matmul, "cpu": getattr(torch.backends.mkldnn, "matmul", None)}
    setting: Any = settings.get(device.type)
    wanted = precision if device.type == "cuda" else "ieee"
    told = getattr(setting, "fp32_precision", "none")
    # "none" is torch's default, which is "ieee". It stays, so that it can still follow torch.backends.fp32_precision.
    if told == "none" and wanted == "ieee":
        yield
        return
    setting.fp32_precision = wanted
    try:
        yield
    finally:
        setting.fp32_precision = told
