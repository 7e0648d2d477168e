"""Where the data are small, or have few features: time of an EM iteration beside scikit-learn's and tgmm's.

Each library does so many iterations from the same means, in turn and on one thread; the time is the median over rounds,
a ratio is the median of the ratios within a round, with its quartiles. scikit-learn's mixture is Gaussian, and the
measure of all columns.

Below, whole fits with each library's defaults, its start and its stopping rule included: of one small data set, and of
a hundred, one after the other and by `fit_many`.

    python -m benchmarks.small
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from benchmarks.report import processor
from tmixture import StudentTMixture, fit_many

HERE = Path(__file__).parent
SHAPES = (  # N, d, K, structure, dtype
    (20, 2, 2, "diag", "float32"),
    (150, 4, 3, "diag", "float32"),
    (1_000, 8, 5, "diag", "float32"),
    (5_000, 16, 10, "full", "float64"),
    (200_000, 2, 10, "diag", "float32"),
    (200_000, 8, 10, "diag", "float32"),
    (50_000, 64, 10, "diag", "float32"),
    (50_000, 64, 10, "full", "float32"),
    (20_000, 512, 40, "diag", "float32"),
)
OURS = {
    "Gaussian": {"dof": float("inf")},
    "Student-t": {},
    "Student-t, ν learned": {"learn_dof": "component"},
}
SECONDS, MOST_ITERATIONS = 0.5, 200
Iterations = Callable[[int], Any]


def rows(n: int, d: int, K: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Overlapping clusters, so that no iteration is spared."""
    rng = np.random.default_rng(seed)
    return (2 * rng.normal(size=(K, d))[rng.integers(K, size=n)] + rng.normal(size=(n, d))).astype(dtype)


def libraries(x: np.ndarray, K: int, structure: str) -> dict[str, Iterations]:
    """What does a number of iterations, scikit-learn first."""
    means, tensor = x[:K], torch.from_numpy(x)

    def scikit_learn(iterations: int) -> object:
        return GaussianMixture(
            K, covariance_type=structure, tol=0, max_iter=iterations, means_init=means, init_params="random_from_data",
            random_state=0,
        ).fit(x)  # fmt: skip

    def ours(iterations: int, **settings: object) -> object:
        return StudentTMixture(
            K,
            x.shape[1],
            covariance_type=structure,
            tol=0,
            max_iter=iterations,
            init=means,
            dtype=tensor.dtype,
            **settings,
        ).fit(tensor)

    mine = {name: (lambda n, settings=settings: ours(n, **settings)) for name, settings in OURS.items()}
    return {"scikit-learn, Gaussian": scikit_learn, **mine, **_tgmm(tensor, K, structure)}


def _tgmm(x: torch.Tensor, K: int, structure: str) -> dict[str, Iterations]:
    """Tgmm's Student-t, where it is installed."""
    try:
        from tgmm import StudentTMixture as Theirs
    except ImportError:
        return {}
    d = x.shape[1]
    scales = torch.ones(K, d, dtype=x.dtype) if structure == "diag" else torch.eye(d, dtype=x.dtype).repeat(K, 1, 1)

    def run(iterations: int) -> object:
        return Theirs(
            K, d, covariance_type=structure, init_means=x[:K], init_covariances=scales, reg_covar=1e-6,
            max_iter=iterations, tol=1e-300, dof=4.0, device="cpu",
        ).fit(x)  # fmt: skip

    return {"tgmm, Student-t": run}


def seconds(run: Iterations, iterations: int) -> float:
    """Of one iteration: the slope between two numbers of them, as counted: some end where nothing changes."""
    begin = time.perf_counter()
    first = run(1)
    middle = time.perf_counter()
    last = run(1 + iterations)
    extra = time.perf_counter() - middle - (middle - begin)
    return extra / max(1, last.n_iter_ - first.n_iter_)


def measure(shape: tuple[int, int, int, str, str], rounds: int, most: int) -> dict[str, np.ndarray]:
    """Seconds of an iteration of each library, in each round."""
    n, d, K, structure, dtype = shape
    runs = libraries(rows(n, d, K, dtype), K, structure)
    iterations = {}
    for name, run in runs.items():
        run(2)  # whatever a first call does
        iterations[name] = int(min(most, max(2, SECONDS / max(seconds(run, 2), 1e-5))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, iterations[name]))
    return {name: np.array(values) for name, values in times.items()}


def whole_fits(rounds: int, count: int) -> list[str]:
    """Lines of the table of whole fits, in milliseconds per data set, and as ratios to scikit-learn's."""
    lines = ["| data | scikit-learn, Gaussian | Student-t | Student-t, `fit_many` |", "|---|---|---|---|"]
    for sets, n, d, K in ((1, 150, 4, 3), (count, 200, 8, 4)):
        runs = _whole(np.stack([rows(n, d, K, "float32", seed) for seed in range(sets)]), K)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):  # the first is not counted
            for name, run in runs.items():
                begin = time.perf_counter()
                run()
                times[name] += [time.perf_counter() - begin] if number else []
        theirs, *others = (np.array(seconds) for seconds in times.values())
        cells = [f"{sets} × {n} × {d}, K = {K}, diag", f"{1000 * np.median(theirs) / sets:.3g} ms"]
        for own in others:
            cells.append(f"{1000 * np.median(own) / sets:.3g} ms ({quartiles(own / theirs)})")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _whole(data: np.ndarray, K: int) -> dict[str, Callable[[], Any]]:
    """What fits to all data sets (B, n, d), scikit-learn first."""
    d = data.shape[2]
    return {
        "scikit-learn": lambda: [GaussianMixture(K, covariance_type="diag", random_state=0).fit(x) for x in data],
        "alone": lambda: [StudentTMixture(K, d, generator=0).fit(x) for x in data],
        "together": lambda: fit_many(StudentTMixture(K, d, generator=0), data),
    }


def quartiles(ratios: np.ndarray) -> str:
    """The median of ratios, and their quartiles."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return f"× {middle:.2f}, {low:.2f} … {high:.2f}"


def row(shape: tuple[int, int, int, str, str], times: dict[str, np.ndarray]) -> str:
    """A line of the table."""
    n, d, K, structure, dtype = shape
    (_, theirs), *others = times.items()
    cells = [f"{n:,} × {d}, K = {K}, {structure}, {dtype}", f"{1000 * np.median(theirs):.3g}"]
    for _, own in others:
        cells.append(f"{1000 * np.median(own):.3g} ({quartiles(own / theirs)})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure all shapes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of them, from the first")
    parser.add_argument("--iterations", type=int, default=MOST_ITERATIONS, help="at most, in a timing")
    parser.add_argument("--sets", type=int, default=100, help="data sets that are fitted at once")
    parser.add_argument("--output", type=Path, default=HERE)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines = []
    with threadpool_limits(1):
        for shape in SHAPES[: asked.shapes]:
            times = measure(shape, asked.rounds, asked.iterations)
            lines.append(row(shape, times))
            print(lines[-1], flush=True)
        fits = whole_fits(asked.rounds, asked.sets)
    torch.set_num_threads(threads)
    names = list(times)
    head = ["| data | " + " | ".join(f"{name}, ms" for name in names) + " |", "|---" * (1 + len(names)) + "|"]
    where = f"{asked.rounds} rounds on {processor()}, torch {torch.__version__}. `python -m benchmarks.small`"
    one, whole = __doc__.split("\n\n")[1:3]
    text = ["# Small data and few features", "", one, "", where, "", *head, *lines, "", whole, "", *fits, ""]
    (asked.output / "SMALL.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
