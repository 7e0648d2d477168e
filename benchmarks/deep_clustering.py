"""Do embeddings that a cluster loss has shaped cluster better, and which method clusters them best? No labels.

An encoder learns by SimCLR from long-tailed images, alone or with a cluster loss beside it from its start on. Then its
embeddings of all training images are clustered: by the mixture that the loss has followed, by a fresh Student-t
mixture, by scikit-learn's Gaussian mixture, k-means and HDBSCAN, and by mixtures of more components, which are merged.
Reported is the adjusted Rand index with the true classes, in percent, with 95 % t-intervals over the seeds; for arms
with a cluster loss also minus SimCLR alone from the same seed.

    python -m benchmarks.deep_clustering --seeds 8
"""

from __future__ import annotations

import argparse
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import Tensor
from tqdm import tqdm

from benchmarks.few_labels import Training, by_default, interval, without_labels
from benchmarks.long_tailed import DATA_SETS, N_CLASSES
from tmixture import StudentTMixture, merge_components
from tmixture.losses import ClusterLoss, CoMembershipLoss

HERE = Path(__file__).parent
COMPONENTS = 20

ARMS: dict[str, Callable[[int], ClusterLoss] | None] = {
    "SimCLR": None,
    "with triplets": lambda d: by_default(None, d, COMPONENTS),
    "with co-membership": lambda d: by_default(CoMembershipLoss(), d, COMPONENTS),
}
# How many components are merged into a cluster, on average.
COMPONENTS_PER_CLUSTER = 1.5


def merged(x: Tensor, n_clusters: int, seed: int, **settings: Any) -> np.ndarray:
    """The clusters of a mixture of more components than clusters, which are merged by entropy."""
    n_components = round(COMPONENTS_PER_CLUSTER * n_clusters)
    return merged_by(StudentTMixture(n_components, x.shape[1], generator=seed, **settings).fit(x), x, n_clusters)


def merged_by(mixture: StudentTMixture, x: Tensor, n_clusters: int) -> np.ndarray:
    """The clusters (n,) of rows when a mixture's components are merged into so many."""
    return np.array(merge_components(mixture, x).labels(n_clusters))[mixture.predict(x).numpy()]


METHODS: dict[str, Callable[[Tensor, int, int], np.ndarray]] = {
    "Student-t mixture, diag": lambda x, K, seed: StudentTMixture(K, x.shape[1], generator=seed).fit_predict(x).numpy(),
    "Student-t mixture, tied": lambda x, K, seed: (
        StudentTMixture(K, x.shape[1], covariance_type="tied", generator=seed).fit_predict(x).numpy()
    ),
    "Student-t mixture, diag, merged": lambda x, K, seed: merged(x, K, seed, covariance_type="diag"),
    "Student-t mixture, tied, merged": lambda x, K, seed: merged(x, K, seed, covariance_type="tied"),
    "Gaussian mixture, diag, merged": lambda x, K, seed: merged(x, K, seed, covariance_type="diag", dof=float("inf")),
    "Gaussian mixture, diag": lambda x, K, seed: GaussianMixture(
        K, covariance_type="diag", random_state=seed
    ).fit_predict(x.double().numpy()),
    "k-means": lambda x, K, seed: KMeans(K, n_init=1, random_state=seed).fit_predict(x.numpy()),
    "HDBSCAN": lambda x, K, seed: HDBSCAN(min_cluster_size=5).fit_predict(x.numpy()),
}
"""From embeddings (n, d), the number of clusters and a seed to clusters (n,); HDBSCAN finds a number of its own."""


def scores(seed: int, name: str, path: Path | None, steps: int | None) -> dict[str, float]:
    """The adjusted Rand index of every method after every arm, from one seed: {"arm: method": percent}."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kind = DATA_SETS[name]
    data = kind.split(seed, 0, path)
    found = {}
    for arm, make in ARMS.items():
        loss = None if make is None else make(kind.width)
        training = Training(kind, data, seed)
        training.run(kind.shared_steps + kind.steps if steps is None else steps, loss and without_labels(loss))
        training.network.eval()
        with torch.no_grad():
            x = torch.nn.functional.normalize(training.network(data.x), dim=1)
        truth = data.y.numpy()
        if loss is not None and loss.mixture.is_fitted:
            found[f"{arm}: the loss's own mixture"] = 100 * adjusted_rand_score(truth, loss.predict(x).numpy())
            own = merged_by(loss.mixture, x, N_CLASSES)
            found[f"{arm}: the loss's own mixture, merged"] = 100 * adjusted_rand_score(truth, own)
        for method, cluster in METHODS.items():
            found[f"{arm}: {method}"] = 100 * adjusted_rand_score(truth, cluster(x, N_CLASSES, seed))
    return found


def table(runs: list[dict[str, float]]) -> list[str]:
    """Lines of Markdown: a row for each arm and method."""
    lines = ["| embeddings | clusters by | adjusted Rand index | minus SimCLR alone |", "|---|---|---|---|"]
    for row in runs[0]:
        arm, method = row.split(": ")
        values, base = (np.array([run.get(key, np.nan) for run in runs]) for key in (row, f"SimCLR: {method}"))
        alone = "" if arm == "SimCLR" or np.isnan(base).any() else interval(values - base)
        lines.append(f"| {arm} | {method} | {interval(values).rsplit(' ', 1)[0]} | {alone} |")
    return lines


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA_SETS), default="digits")
    parser.add_argument("--path", type=Path, help="the zip file of data that are no part of scikit-learn")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of each arm")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=HERE / "DEEP_CLUSTERING.md")
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    run = partial(scores, name=asked.data, path=asked.path, steps=asked.steps)
    with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
        runs = list(tqdm(pool.map(run, seeds), total=len(seeds), desc="seeds"))
    title = f"# Deep clustering: {DATA_SETS[asked.data].title}, long-tailed"
    lines = [
        title,
        "",
        __doc__.split("\n\n")[1],
        "",
        f"{len(seeds)} seeds, torch {torch.__version__}.",
        "",
        *table(runs),
    ]
    asked.output.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
