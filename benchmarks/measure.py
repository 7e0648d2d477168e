"""What runs in a process of its own: one library on one problem, or another single measurement. Prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks import training
from benchmarks.adapters import ADAPTERS, UPDATES, History
from benchmarks.problems import Problem, load

# The iterations that are timed take at least this long together, unless they would be more than so many.
TIMED_SECONDS = 3.0
MOST_ITERATIONS = 64


def speed(library: str, path: str, covariance: str) -> dict[str, Any]:
    """Seconds per iteration, as the slope between two numbers of iterations, and peak memory."""
    problem, fit = load(Path(path), covariance), ADAPTERS[library].fit
    _warm_up(fit, problem)
    before = _reset_peak()
    one, _ = _timed(fit, problem, 1)
    if one < TIMED_SECONDS:
        one, _ = _timed(fit, problem, 1)
    extra, more, history = 1, *_timed(fit, problem, 2)
    while more - one < TIMED_SECONDS and extra < MOST_ITERATIONS:
        extra *= 4
        more, history = _timed(fit, problem, 1 + extra)
    peak = _memory("VmHWM")
    return {
        "seconds": (more - one) / extra,
        "iterations": extra,
        "first": one,
        "peak": peak,
        "extra": peak - before,
        "log_likelihood": history[1] if len(history) > 1 else None,
    }


def convergence(library: str, path: str, covariance: str, most: str) -> dict[str, Any]:
    """The log-likelihoods of a long run, and its seconds."""
    problem, fit = load(Path(path), covariance), UPDATES[library].fit
    _warm_up(fit, problem)
    seconds, history = _timed(fit, problem, int(most))
    return {"history": history, "seconds": seconds}


def peaks() -> dict[str, float]:
    """What the machine can do at best: matrix products and copies, in 1e9 flop/s and 1e9 bytes/s."""
    size, rates = 2048, {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        a = torch.rand(size, size, dtype=dtype)
        rates[name] = 2 * size**3 / min(_timed(torch.mm, a, a)[0] for _ in range(8)) / 1e9
    source = torch.rand(2**26)
    target = torch.empty_like(source)
    rates["copy"] = 2 * 4 * len(source) / min(_timed(target.copy_, source)[0] for _ in range(5)) / 1e9
    return rates


def in_training(batch: str) -> dict[str, float]:
    """Seconds of a step of CLIP with a batch of this size, and of the cluster stage beside it."""
    return {"step": training.clip_step(int(batch)), **training.cluster_stage(int(batch))}


def stage(batch: str) -> dict[str, float]:
    """Seconds of the cluster stage alone."""
    return training.cluster_stage(int(batch))


def _warm_up(fit: Callable[[Problem, int], History], problem: Problem) -> None:
    """Import what there is to import, and start the threads. Too few rows may well be refused."""
    with suppress(Exception):
        fit(problem.head(), 1)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - begin, result


def _memory(field: str) -> int:
    """A field of the process's status, in bytes. The peak that getrusage gives includes the parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _reset_peak() -> int:
    """Let the peak start from the present memory, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _limit_memory() -> None:
    """Make an allocation that the machine has no room for an error, not the end of the process."""
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * total), resource.RLIM_INFINITY))


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (speed, convergence, peaks, in_training, stage)
}

if __name__ == "__main__":
    _limit_memory()
    name, *arguments = sys.argv[1:]
    try:
        result = MEASUREMENTS[name](*arguments)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        result = {"failure": f"{type(error).__name__}: {text}"[:160]}
    print(json.dumps(result))
