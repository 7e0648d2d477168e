"""Measure ourselves beside other libraries and write `RESULTS.md`: `python -m benchmarks.compare`.

Every measurement is a process of its own. Its outcome is kept in `benchmarks/.cache`, so that an interrupted run goes
on where it was; what is kept of a library counts for that version of it, ours for the files in `src`. What was stopped
by the limit is measured again when the limit is higher.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.adapters import ADAPTERS, UPDATES
from benchmarks.problems import Shape, prepare

FOLDER = Path(__file__).parent
CACHE = FOLDER / ".cache"
STOPPED = "stopped after"

SHAPES = [Shape(20_000, 64, 16), Shape(20_000, 512, 40), Shape(235_000, 512, 40)]
QUICK_SHAPES = [Shape(2_000, 64, 4)]
CONVERGENCE = [(Shape(2_000, 512, 4), "diag", 400), (Shape(2_000, 128, 4), "full", 200)]
STRUCTURES = [("spherical", 0), ("diag", 0), ("lowrank", 2), ("lowrank", 8), ("tied", 0), ("full", 0)]
QUICK_CONVERGENCE = [(Shape(1_000, 64, 4), "diag", 60)]


class Runner:
    """Runs measurements, or takes what it kept of them.

    Args:
        limit: seconds that one measurement may take.
        only: parts of the names of the measurements to run; empty for all. Others are taken from the cache, if there.
        fresh: whether to forget what was kept.
        device: "cpu" or "cuda".
    """

    def __init__(self, limit: float, only: list[str], *, fresh: bool, device: str) -> None:
        self.limit, self.only, self.fresh, self.device = limit, only, fresh, device
        CACHE.mkdir(exist_ok=True)

    def run(self, package: str, measurement: str, *arguments: str) -> dict[str, Any]:
        """The outcome of a measurement: what `measure` printed, or {"failure": why there is none}."""
        name = " ".join([measurement, *(Path(argument).stem for argument in arguments)])
        state = sources() if package == "tmixture" else report.installed_version(package)
        if state is None:
            return {"failure": "not installed"}
        key = json.dumps([name, self.device, state])
        path = CACHE / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        chosen = not self.only or any(part in name for part in self.only)
        if path.exists() and not (self.fresh and chosen):
            kept = json.loads(path.read_text())
            stopped = kept["result"].get("failure", "").startswith(STOPPED)
            if not (chosen and stopped and kept["limit"] < self.limit):
                return dict(kept["result"])
        if not chosen:
            return {"failure": "not run"}
        begin = time.perf_counter()
        result = self._measure(measurement, self.device, *arguments)
        print(f"{name}: {time.perf_counter() - begin:.1f} s", result.get("failure", ""), flush=True)
        path.write_text(json.dumps({"key": key, "limit": self.limit, "result": result}))
        return result

    def _measure(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "benchmarks.measure", *arguments]
        try:
            done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=self.limit)
        except subprocess.TimeoutExpired:
            return {"failure": f"{STOPPED} {self.limit:.0f} s"}
        if done.returncode:
            return {"failure": f"ended with code {done.returncode}: {(done.stderr.splitlines() or [''])[-1]}"[:160]}
        return dict(json.loads(done.stdout.splitlines()[-1]))


def speeds(runner: Runner, shapes: list[Shape]) -> dict[tuple[Shape, str], dict[str, dict[str, Any]]]:
    """By problem and library. What would exceed the limit by the time of the problem before is not tried."""
    results: dict[tuple[Shape, str], dict[str, dict[str, Any]]] = {}
    for covariance in ("diag", "full"):
        for number, shape in enumerate(shapes):
            path = prepare(shape, CACHE)
            rows = results[shape, covariance] = {}
            for name, adapter in ADAPTERS.items():
                before = results.get((shapes[number - 1], covariance), {}).get(name, {}) if number else {}
                expected = _expected_seconds(before, shapes[number - 1], shape)
                if covariance not in adapter.covariances or (runner.device == "cuda" and not adapter.on_gpu):
                    continue
                if 3 * expected > runner.limit:
                    rows[name] = {"failure": f"not tried: about {expected:.0f} s per iteration by the shape before"}
                else:
                    rows[name] = runner.run(adapter.package, "speed", name, str(path), covariance)
    return results


def _expected_seconds(before: dict[str, Any], old: Shape, new: Shape) -> float:
    """Seconds per iteration if they grow with the rows alone; 0 if nothing is known."""
    return float(before.get("seconds", 0.0)) * new.rows / old.rows if old.features == new.features else 0.0


def convergences(runner: Runner, cases: list[tuple[Shape, str, int]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Long runs by problem and update."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for shape, covariance, most in cases:
        path = prepare(shape, CACHE)
        results[f"{shape} {covariance}"] = {
            name: runner.run(adapter.package, "convergence", name, str(path), covariance, str(most))
            for name, adapter in UPDATES.items()
        }
    return results


def structures(runner: Runner, shape: Shape) -> tuple[Shape, dict[str, dict[str, Any]]]:
    """Our structures of the scales on one problem, with a fifth of its rows held out."""
    path = prepare(shape, CACHE)
    return shape, {
        covariance if rank == 0 else f"{covariance}, rank={rank}": runner.run(
            "tmixture", "structure", covariance, str(rank), str(path)
        )
        for covariance, rank in STRUCTURES
    }


def commit() -> str:
    """The commit of the working tree, with a mark if it has changes."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()


def sources() -> str:
    """A digest of our own code."""
    digest = hashlib.sha256()
    for path in sorted((FOLDER.parent / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small problems; the tables go to .cache/QUICK.md")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="run measurements so named only")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds that one measurement may take")
    parser.add_argument("--fresh", action="store_true", help="measure again what the cache has")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to measure")
    arguments = parser.parse_args()
    runner = Runner(arguments.limit, arguments.only, fresh=arguments.fresh, device=arguments.device)
    small, large = ("8", "256") if arguments.quick else ("32", "4096")
    outcome = report.Outcome(
        commit=commit(),
        command=" ".join(["python -m benchmarks.compare", *sys.argv[1:]]),
        peaks=runner.run("torch", "peaks"),
        speeds=speeds(runner, QUICK_SHAPES if arguments.quick else SHAPES),
        convergences=convergences(runner, QUICK_CONVERGENCE if arguments.quick else CONVERGENCE),
        structures=structures(runner, QUICK_SHAPES[0] if arguments.quick else Shape(25_000, 512, 40)),
        in_training=(int(small), runner.run("tmixture", "in_training", small)),
        stage=(int(large), runner.run("tmixture", "stage", large)),
    )
    name = "RESULTS.md" if arguments.device == "cpu" else "RESULTS_GPU.md"
    path = CACHE / "QUICK.md" if arguments.quick else FOLDER / name
    report.write(outcome, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
