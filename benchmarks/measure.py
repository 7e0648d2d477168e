"""What runs in a process of its own: one library on one problem, or another single measurement. Prints JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import training
from benchmarks.adapters import ADAPTERS, UPDATES, History
from benchmarks.problems import DOF, Problem, load

# The iterations that are timed take at least this long together, unless they would be more than so many.
TIMED_SECONDS = 3.0
MOST_ITERATIONS = 64
# On a machine that is not ours alone one timing in three is off by half. The median of so many counts, or of as many as
# fit into so many seconds.
REPEATS, REPEATED_SECONDS = 5, 40.0
STRUCTURE_ITERATIONS = 30


def speed(device: str, library: str, path: str, covariance: str) -> dict[str, Any]:
    """Seconds per iteration, as the median slope between two numbers of iterations, and peak memory."""
    problem, fit = load(Path(path), covariance, device), ADAPTERS[library].fit
    _warm_up(fit, problem)
    before = _reset_peak(device)
    one, _ = _timed(fit, problem, 1)
    if one < TIMED_SECONDS:
        one, _ = _timed(fit, problem, 1)
    extra, more, history = 1, *_timed(fit, problem, 2)
    while more - one < TIMED_SECONDS and extra < MOST_ITERATIONS:
        extra *= 4
        more, history = _timed(fit, problem, 1 + extra)
    peak = _peak(device)
    differences = [more - one]
    begin = time.perf_counter()
    while len(differences) < REPEATS and time.perf_counter() - begin + one + more < REPEATED_SECONDS:
        differences.append(_timed(fit, problem, 1 + extra)[0] - _timed(fit, problem, 1)[0])
    return {
        "seconds": median(differences) / extra,
        "iterations": extra,
        "first": one,
        "peak": peak,
        "extra": peak - before,
        "log_likelihood": history[1] if len(history) > 1 else None,
    }


def convergence(device: str, library: str, path: str, covariance: str, most: str) -> dict[str, Any]:
    """The log-likelihoods of a long run, and its seconds."""
    problem, fit = load(Path(path), covariance, device), UPDATES[library].fit
    _warm_up(fit, problem)
    seconds, history = _timed(fit, problem, int(most))
    return {"history": history, "seconds": seconds}


def structure(device: str, covariance: str, rank: str, path: str) -> dict[str, Any]:
    """A fit with one structure of the scales: seconds per iteration, and the log-likelihood of rows held out."""
    from tmixture import StudentTMixture

    problem = load(Path(path), "full", device)
    x, held_out = problem.on_device(problem.x).split([len(problem.x) * 4 // 5, len(problem.x) // 5])
    K, d = problem.means.shape
    settings: dict[str, Any] = {"rank": int(rank)} if covariance == "lowrank" else {}
    if covariance == "full":
        settings["reg_covar"] = problem.regularization

    def fit(max_iter: int) -> StudentTMixture:
        mixture = StudentTMixture(
            K, d, dof=DOF, covariance_type=covariance, init=problem.means, max_iter=max_iter, device=device, **settings
        )
        return mixture.fit(x)

    fit(1)
    one, _ = _timed(fit, 1)
    more, mixture = _timed(fit, STRUCTURE_ITERATIONS)
    return {
        "seconds": (more - one) / (mixture.n_iter_ - 1),
        "iterations": mixture.n_iter_,
        "parameters": mixture.n_free_parameters,
        "log_likelihood": mixture.history_[-1],
        "held_out": mixture.score(held_out),
    }


def peaks(device: str) -> dict[str, float]:
    """What the machine can do at best: matrix products and copies, in 1e9 flop/s and 1e9 bytes/s."""
    size, rates = 2048, {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        a = torch.rand(size, size, dtype=dtype, device=device)
        rates[name] = 2 * size**3 / min(_timed(_finished, torch.mm, a, a)[0] for _ in range(8)) / 1e9
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * 4 * len(source) / min(_timed(_finished, target.copy_, source)[0] for _ in range(5)) / 1e9
    return rates


def _finished(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> None:
    """Call the function, and wait for the GPU."""
    function(*arguments).flatten()[0].item()


def in_training(device: str, batch: str) -> dict[str, float]:
    """Seconds of a step of CLIP with a batch of this size, and of the cluster stage beside it."""
    return {"step": training.clip_step(int(batch), device), **training.cluster_stage(int(batch), device)}


def stage(device: str, batch: str) -> dict[str, float]:
    """Seconds of the cluster stage alone."""
    return training.cluster_stage(int(batch), device)


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


def _reset_peak(device: str) -> int:
    """Let the peak start from the present memory of the device, and return that in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak(device: str) -> int:
    """The most memory of the device in use since, in bytes."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _memory("VmHWM")


def _limit_memory() -> None:
    """Make an allocation that the machine has no room for an error, not the end of the process."""
    total = 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * total), resource.RLIM_INFINITY))


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function for function in (speed, convergence, structure, peaks, in_training, stage)
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
