"""How good the first fit is, beside scikit-learn's: one start each, both with their default initialisation.

python -m benchmarks.starts

Clusters are unit Gaussians in d features with centres N(0, spread²·I). Both libraries fit diagonal Gaussians, so that
their likelihoods can be compared; the last column is the default Student-t of this library. Written to STARTS.md.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from tmixture import StudentTMixture

PROBLEMS = (  # K, d, N, spread of the centres
    (4, 8, 500, 4.0),
    (4, 16, 500, 4.0),
    (10, 8, 2000, 2.0),
    (10, 32, 2000, 1.0),
    (20, 16, 4000, 2.0),
    (20, 64, 4000, 1.0),
    (50, 8, 10_000, 3.0),
    (50, 64, 10_000, 1.0),
)
COLUMNS = ("ARI here", "ARI scikit-learn", "log-likelihood, here − scikit-learn", "ARI here, dof=4")


def clusters(K: int, d: int, n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) and their clusters (n,)."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(K, d))
    labels = rng.integers(K, size=n)
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def compare(K: int, d: int, n: int, spread: float, seed: int, device: torch.device) -> list[float]:
    """The numbers of one row of the table from one seed."""
    x, labels = clusters(K, d, n, spread, seed)
    common = {"covariance_type": "diag", "max_iter": 200}
    gaussian = StudentTMixture(K, d, dof=float("inf"), generator=seed, device=device, **common).fit(x)
    student = StudentTMixture(K, d, generator=seed, device=device, **common).fit(x)
    theirs = GaussianMixture(K, random_state=seed, **common).fit(x)
    return [
        adjusted_rand_score(labels, gaussian.predict(x).cpu()),
        adjusted_rand_score(labels, theirs.predict(x)),
        gaussian.score(x) - theirs.score(x),
        adjusted_rand_score(labels, student.predict(x).cpu()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--problems", type=int, default=len(PROBLEMS), help="how many of them, from the first")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = ["| K | d | N | spread | " + " | ".join(COLUMNS) + " |", "|---:" * (4 + len(COLUMNS)) + "|"]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    everything = []
    for problem in PROBLEMS[: arguments.problems]:
        rows = np.array([compare(*problem, seed, torch.device(arguments.device)) for seed in seeds])
        everything.append(rows)
        lines.append(_row([f"{value:,g}" for value in problem], rows))
        print(lines[-1], flush=True)
    lines.append(_row(["all", "", "", ""], np.concatenate(everything)))
    print(lines[-1])
    text = (
        "# The first fit beside scikit-learn's\n\n"
        f"Mean of {arguments.seeds} seeds ± its standard error. `python -m benchmarks.starts`\n\n"
    )
    (arguments.output / "STARTS.md").write_text(text + "\n".join(lines) + "\n")


def _row(names: list[str], rows: np.ndarray) -> str:
    error = rows.std(0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.zeros(rows.shape[1])
    return "| " + " | ".join([*names, *(f"{m:.3f} ± {e:.3f}" for m, e in zip(rows.mean(0), error))]) + " |"


if __name__ == "__main__":
    main()
