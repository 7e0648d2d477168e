"""What `max_candidates` gains and costs with thousands of components, beside exact EM from the same start.

    OMP_NUM_THREADS=1 python benchmarks/candidates.py                        # K = 4096, d = 256, N = 200 000
    OMP_NUM_THREADS=1 python benchmarks/candidates.py --kind network         # rows without clusters

Prints a Markdown table, and keeps it in `CANDIDATES.md`. All fits start from the same five iterations of k-means and
take turns in one process. Times are CPU seconds of all threads: on a machine that is busy with other things their
ratios still hold. An iteration is the difference between fits of several iterations and of one: initialisation and the
first search are left out. Components that lose their rows start anew on rows drawn at random, so that the same fit ends
elsewhere with another seed: the log-likelihoods are means over seeds, and `all` shows how far apart exact fits are.
"""

from __future__ import annotations

import argparse
import datetime
import time
import warnings
from pathlib import Path
from statistics import mean

import faiss
import torch
from torch import Tensor

from tmixture import ConvergenceWarning, StudentTMixture


def clusters(rows: int, arguments: argparse.Namespace, seed: int) -> Tensor:
    """As many clusters as components, whose spreads differ by a factor of ten, overlapping in 16 directions."""
    world, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    K, d, q = arguments.components, arguments.features, 16
    directions = torch.randn(q, d, generator=world) / q**0.5
    centres = torch.randn(K, q, generator=world)
    spread = 0.25 * torch.exp(0.6 * torch.randn(K, 1, generator=world))
    label = torch.randint(K, (rows,), generator=draw)
    inside = centres[label] + spread[label] * torch.randn(rows, q, generator=draw)
    return inside @ directions + 0.2 * spread[label] * torch.randn(rows, d, generator=draw)


def network(rows: int, arguments: argparse.Namespace, seed: int) -> Tensor:
    """Directions of noise in 32 dimensions after a random network: one cloud without clusters."""
    world, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    inner = torch.randn(32, 512, generator=world) / 32**0.5
    outer = torch.randn(512, arguments.features, generator=world)
    x = torch.relu(torch.randn(rows, 32, generator=draw) @ inner) @ outer
    return torch.nn.functional.normalize(x - x.mean(0), dim=1)


HEADER = """\
# Thousands of components

`max_candidates` beside the exact E-step: {kind}, N = {rows}, d = {features}, K = {components}, {covariance_type}
scales, ν = {dof:g}, {iterations} iterations. CPU seconds of all threads. Components that lose their rows start anew on
rows drawn at random: log-likelihoods are means over {seeds} seeds, with the largest deviation of one of them. By
`benchmarks/candidates.py`, {date}; torch {torch}.

| candidates | s/iteration | speed-up | bound | held-out log-likelihood | difference | disagreement |
|---|---:|---:|---:|---:|---:|---:|"""

KINDS = {"clusters": clusters, "network": network}


def fit(
    x: Tensor, means: Tensor, n_candidates: int | None, iterations: int, seed: int, arguments: argparse.Namespace
) -> tuple[StudentTMixture, float]:
    """The mixture and the CPU seconds it took."""
    mixture = StudentTMixture(
        arguments.components,
        arguments.features,
        dof=arguments.dof,
        covariance_type=arguments.covariance_type,
        init=means,
        max_iter=iterations,
        tol=0.0,
        max_candidates=n_candidates,
        generator=seed,
    )
    start = time.process_time()
    mixture.fit(x)
    return mixture, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="clusters", help="the data")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--held-out", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--components", type=int, default=4096)
    parser.add_argument("--candidates", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="fits of each kind")
    parser.add_argument("--dof", type=float, default=4.0)
    parser.add_argument("--covariance-type", default="diag")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("CANDIDATES.md"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", RuntimeWarning)  # of components started anew

    x, held_out = (
        KINDS[arguments.kind](n, arguments, seed) for seed, n in ((1, arguments.rows), (2, arguments.held_out))
    )
    clustering = faiss.Kmeans(arguments.features, arguments.components, niter=5, seed=0, max_points_per_centroid=len(x))
    clustering.train(x.numpy())
    means = torch.from_numpy(clustering.centroids)
    lines = [HEADER.format(**vars(arguments), date=datetime.date.today().isoformat(), torch=torch.__version__)]
    exact_seconds = exact_score = None
    for n_candidates in (None, *arguments.candidates):
        first = fit(x, means, n_candidates, 1, 0, arguments)[1]
        fits = [fit(x, means, n_candidates, arguments.iterations, seed, arguments) for seed in range(arguments.seeds)]
        per_iteration = (mean(seconds for _, seconds in fits) - first) / (arguments.iterations - 1)
        bound = mean(mixture.history_[-1] for mixture, _ in fits)
        scores = [mixture.score(held_out) for mixture, _ in fits]
        score, deviation = mean(scores), max(abs(each - mean(scores)) for each in scores)
        exact_seconds, exact_score = exact_seconds or per_iteration, exact_score or score
        difference = (score - exact_score) / abs(exact_score)
        share = f"{mean(mixture.disagreement_ for mixture, _ in fits):.2%}" if n_candidates else ""
        lines.append(
            f"| {n_candidates or 'all'} | {per_iteration:.2f} | {exact_seconds / per_iteration:.1f}× "
            f"| {bound:.3f} | {score:.3f} ± {deviation:.3f} | {difference:+.2%} | {share} |"
        )
        print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
