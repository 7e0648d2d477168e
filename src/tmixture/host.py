"""Numbers that a module keeps on its device, as the host knows them: asking a GPU means waiting for all of its work."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def number(module: nn.Module, name: str) -> float:
    """The value of a scalar buffer, for which a device is waited for only if the buffer has changed since."""
    buffer: Tensor = getattr(module, name)
    if buffer.is_inference():  # these count no versions
        return buffer.item()
    tensor, version, value = module.__dict__.get(f"_{name}_on_host", (None, 0, 0))
    if tensor is not buffer or version != buffer._version:
        value = buffer.item()
        _remember(module, name, buffer, value)
    return value


def set_number(module: nn.Module, name: str, value: float) -> None:
    """Replace a scalar buffer by one of this value, without waiting."""
    buffer = torch.full_like(getattr(module, name), value)
    setattr(module, name, buffer)
    if not buffer.is_inference():
        _remember(module, name, buffer, value)


def _remember(module: nn.Module, name: str, buffer: Tensor, value: float) -> None:
    module.__dict__[f"_{name}_on_host"] = (buffer, buffer._version, value)
