"""The one place that knows `torch.distributed`."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def is_active() -> bool:
    """Whether a default process group with more than one process exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_in_place(tensors: list[Tensor]) -> None:
    """Sum the tensors over all processes, in one message per dtype."""
    if not is_active():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.reshape(tensor.shape))


def gather_rows(x: Tensor) -> Tensor:
    """The rows (n, …) of all processes, in the order of their ranks; n may differ."""
    if not is_active():
        return x
    count = torch.tensor([len(x)], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    longest = max(int(c) for c in counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(c)] for part, c in zip(gathered, counts)])


def from_first_process(x: Tensor) -> Tensor:
    """What the first process holds, which may have another number of rows than here."""
    if not is_active():
        return x
    count = torch.tensor([len(x)], device=x.device)
    dist.broadcast(count, 0)
    received = x if dist.get_rank() == 0 else x.new_empty(int(count), *x.shape[1:])
    received = received.contiguous()
    dist.broadcast(received, 0)
    return received


def broadcast_in_place(tensors: list[Tensor]) -> None:
    """Give all processes what the first one holds."""
    if is_active():
        for tensor in tensors:
            dist.broadcast(tensor, 0)
