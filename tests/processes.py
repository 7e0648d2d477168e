"""Processes to test with, forked from one that has imported what they need: starting one takes no time."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["torch.distributed", "tmixture.losses", "cxr.simulation.writing", "cxr.data.images"])


def run_ranks(task: Callable[..., object], size: int, folder: Path, *arguments: object) -> list[str | int]:
    """Run `task(rank, folder, *arguments)` in processes of their own: the exit code of each, or what it raised."""
    running = [FORKED.Process(target=_run, args=(task, rank, folder, *arguments)) for rank in range(size)]
    for process in running:
        process.start()
    for process in running:
        process.join(250)
        process.kill()  # it waits for another one, if it is still there
    errors = [folder / f"{rank}.error" for rank in range(size)]
    return [error.read_text() if error.exists() else process.exitcode for error, process in zip(errors, running)]


def _run(task: Callable[..., object], rank: int, folder: Path, *arguments: object) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # global random states differ, as between real processes
    try:
        task(rank, folder, *arguments)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    # Gloo's threads may outlive the group for a moment, and then abort an interpreter that is shutting down.
    os._exit(0)
