"""The one place that knows `torch.distributed`.

Every message is announced by a few integers that all processes exchange: what comes next, and of what size. So a
process that failed can say so whatever the others wait for, and processes that have lost step notice.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Error = TypeVar("Error", bound=BaseException)

# What a process can announce.
STEPS = ("failed", "is done", "sums", "gathers", "takes what rank 0 holds of")
FAILED, DONE, SUM, GATHER, FROM_FIRST = range(len(STEPS))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64)
# How long the others may take to answer the roll when contact is lost.
ROLL_CALL_SECONDS = 3.0


def is_active() -> bool:
    """Whether a default process group with more than one process exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_active() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_active() else 0


@contextmanager
def together(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """All processes leave this block in the same way: where one fails all do, and none is left waiting for it.

    The one that fails raises its own error, the others a `RuntimeError` that quotes it. Blocks may be nested.

    Args:
        device: where messages are sent from: the GPU for nccl.
        enabled: whether this process works with others at all; the same in all of them.
    """
    if not (enabled and is_active()):
        yield
        return
    nothing = torch.empty(0, device=device)
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "known_to_all"):
            with suppress(RuntimeError), _uninterrupted():
                _exchange(FAILED, nothing)
                _failures(f"{type(error).__name__}: {error}".removesuffix(": "))
            _known_to_all(error)
        raise
    with _uninterrupted():
        _announce(DONE, nothing)


def sum_in_place(tensors: list[Tensor]) -> None:
    """Sum tensors of one dtype over all processes, in one message."""
    if not is_active():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _uninterrupted():
        _announce(SUM, flat)
        _call(dist.all_reduce, flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.reshape(tensor.shape))


def gather_rows(x: Tensor) -> Tensor:
    """The rows (n, …) of all processes in the order of their ranks, n may differ; of several dtypes the widest."""
    if not is_active():
        return x
    with _uninterrupted():
        counts, dtype = _announce(GATHER, x)
        padded = x.new_zeros(max(counts), *x.shape[1:], dtype=dtype)
        padded[: len(x)] = x
        gathered = [torch.empty_like(padded) for _ in counts]
        _call(dist.all_gather, gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts)])


def from_first_process(x: Tensor) -> Tensor:
    """What the first process holds, which may have another number of rows than here."""
    if not is_active():
        return x
    with _uninterrupted():
        counts, dtype = _announce(FROM_FIRST, x)
        received = x.to(dtype).contiguous() if rank() == 0 else x.new_empty(counts[0], *x.shape[1:], dtype=dtype)
        _call(dist.broadcast, received, 0)
    return received


def broadcast_in_place(tensors: list[Tensor]) -> None:
    """Give all processes what the first one holds: tensors of one dtype and the same shapes everywhere."""
    for tensor in tensors if rank() > 0 else []:
        tensor.zero_()
    sum_in_place(tensors)


def _announce(step: int, x: Tensor) -> tuple[list[int], torch.dtype]:
    """Tell what this process is about to do with x (n, …), and hear it from the others.

    Returns:
        How many rows each process has, and the dtype that holds them all.

    Raises:
        RuntimeError: a process failed, is lost, or is about to do something else. All processes raise it then.
    """
    table = _exchange(step, x)
    if any(said == FAILED for said, *_ in table):
        raise _known_to_all(RuntimeError("; ".join(_failures(None))))
    if len({(said, width, step == SUM and count) for said, count, width, _ in table}) > 1:
        said = "; ".join(f"rank {i} {STEPS[row[0]]} {row[1]} × {row[2]} numbers" for i, row in enumerate(table))
        raise _known_to_all(
            RuntimeError(
                f"the processes have lost step: {said}. All of them must make the same calls, of mixtures with the "
                "same settings"
            )
        )
    dtype = x.dtype
    for row in table:
        dtype = torch.promote_types(dtype, DTYPES[row[3]])
    return [count for _, count, _, _ in table], dtype


def _exchange(step: int, x: Tensor) -> list[list[int]]:
    """Step, number of rows, size of a row and dtype of x, from every process."""
    mine = torch.tensor([step, len(x), math.prod(x.shape[1:]), DTYPES.index(x.dtype)], device=x.device)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    _call(dist.all_gather, everyone, mine)
    table: list[list[int]] = torch.stack(everyone).tolist()
    return table


def _failures(own: str | None) -> list[str]:
    """What went wrong in each process that failed, once one has announced that it did."""
    reasons: list[str | None] = [None] * world_size()
    _call(dist.all_gather_object, reasons, own)
    return [f"rank {i} failed: {reason}" for i, reason in enumerate(reasons) if reason is not None]


def _call(collective: Callable[..., Any], *arguments: Any) -> None:
    """Call into `torch.distributed`, and say in plain words when nobody answers."""
    try:
        collective(*arguments)
    except RuntimeError as error:
        lost = ", ".join(map(str, _roll_call())) or "unknown"
        raise _known_to_all(
            RuntimeError(
                f"a process of the group stopped answering (rank: {lost}): it died, or took longer than the timeout "
                f"of the process group. Its own output says more. This is rank {rank()}"
            )
        ) from error


def _roll_call() -> list[int]:
    """The ranks that do not sign in the store of the process group within a few seconds."""
    store, missing = dist.distributed_c10d._get_default_store(), []
    deadline = time.monotonic() + ROLL_CALL_SECONDS
    try:
        store.set(f"tmixture/alive/{rank()}", "")
        for other in range(world_size()):
            try:
                store.wait([f"tmixture/alive/{other}"], timedelta(seconds=max(0.1, deadline - time.monotonic())))
            except dist.DistNetworkError:
                raise
            except RuntimeError:  # nothing in time
                missing.append(other)
    except dist.DistNetworkError:
        return [0]  # the store is lost with the first process, or with the machine it runs on
    return missing


def _known_to_all(error: Error) -> Error:
    """Mark an error that the other processes need not be told of."""
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while a message is under way, so that it does not come between an announcement and the rest."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)
