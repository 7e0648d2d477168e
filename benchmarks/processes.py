"""How an EM iteration scales with the number of processes on one machine, one thread each.

Strong scaling: the same rows, shared out. Weak scaling: as many rows for each process. An iteration's time is that of a
fit of many iterations less that of a fit of few, so that the start does not count; the median of several.

    python -m benchmarks.processes
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed as dist

SHAPES = [("diag", 64, 40, 400_000), ("diag", 512, 40, 50_000), ("full", 64, 10, 100_000)]
FEW, MANY, REPEATS = 2, 8, 5


def seconds_per_iteration(structure: str, d: int, K: int, rows: int) -> float:
    """Of a fit to so many rows in this process, together with the other processes."""
    from tmixture import StudentTMixture

    generator = torch.Generator().manual_seed(dist.get_rank())
    x = torch.randn(rows, d, generator=generator)
    centres = torch.randn(K, d, generator=torch.Generator().manual_seed(99))
    x += 2 * centres[torch.randint(K, (rows,), generator=generator)]

    def fit(n_iter: int) -> float:
        mixture = StudentTMixture(
            K,
            d,
            covariance_type=structure,
            init=centres,
            max_iter=n_iter,
            tol=0,
            distributed=True,  # type: ignore[arg-type]
        )
        dist.barrier()
        started = time.perf_counter()
        mixture.fit(x)
        dist.barrier()
        return time.perf_counter() - started

    fit(FEW)
    return statistics.median((fit(MANY) - fit(FEW)) / (MANY - FEW) for _ in range(REPEATS))


def worker(n_processes: int, weak: bool) -> None:
    """Measure all shapes in this process, and print them in the first one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [seconds_per_iteration(s, d, K, n if weak else n // n_processes) for s, d, K, n in SHAPES]
    if dist.get_rank() == 0:
        print("RESULT", json.dumps(found), flush=True)
    dist.destroy_process_group()


def measured(n_processes: int, *, weak: bool) -> list[float]:
    """Seconds per iteration of all shapes with so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    command += ["-m", "benchmarks.processes", "--worker", str(n_processes), *["--weak"] * weak]
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    line = next(line for line in run.stdout.splitlines() if line.startswith("RESULT"))
    result: list[float] = json.loads(line.removeprefix("RESULT"))
    return result


def main() -> None:
    """Print the table, or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--weak", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.weak)
        return
    print("| structure | features | K | rows | processes | strong: ms, speed-up | weak: ms, efficiency |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    times = {n: (measured(n, weak=False), measured(n, weak=True)) for n in arguments.processes}
    alone = times[arguments.processes[0]]
    for i, (structure, d, K, rows) in enumerate(SHAPES):
        for n, (strong, weak) in times.items():
            print(
                f"| {structure} | {d} | {K} | {rows:,} | {n} | {1e3 * strong[i]:.0f}, {alone[0][i] / strong[i]:.2f} "
                f"| {1e3 * weak[i]:.0f}, {alone[1][i] / weak[i]:.2f} |"
            )


if __name__ == "__main__":
    main()
