"""Processes that `torchrun` has launched, which share a command between them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from tmixture.distributed import is_active, rank, together, world_size

Item = TypeVar("Item")


@contextmanager
def launched(device: torch.device, timeout: float) -> Iterator[torch.device]:
    """A block in which the processes of `torchrun` work together, on a device of their own; alone without it.

    Args:
        device: where to compute; "cuda" is the GPU of the process's number on its machine.
        timeout: seconds that a process waits for the slowest.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    wait = timedelta(seconds=timeout)
    # Names of their own for every attempt: the store may outlive it, and with it the addresses of processes that died.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, own_rank, size = next(dist.rendezvous("env://", timeout=wait))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"tmixture/attempt-{attempt}", store),
        rank=own_rank,
        world_size=size,
        timeout=wait,
    )
    try:
        with together(device):
            yield device
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def has_been_restarted() -> bool:
    """Whether `torchrun` has launched the processes anew after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def own_share(items: Sequence[Item], sizes: Sequence[int]) -> list[Item]:
    """The items of this process: consecutive ones, in shares of about the same size, so that the order stays."""
    total, start, share = sum(sizes), 0, []
    for item, size in zip(items, sizes):
        middle = start + size / 2
        if min(int(middle * world_size() / max(1, total)), world_size() - 1) == rank():
            share.append(item)
        start += size
    return share


def file_of_first(path: Path | None) -> Path | None:
    """A file of the first process, which the others get a copy of; None if it has none.

    Machines need not share a disk.
    """
    if not is_active():
        return path
    content = [None if path is None else path.read_bytes()]
    dist.broadcast_object_list(content, src=0)
    if is_first():
        return path
    if content[0] is None:
        return None
    with tempfile.NamedTemporaryFile(delete=False, suffix=".safetensors") as copy:
        copy.write(content[0])
    return Path(copy.name)
