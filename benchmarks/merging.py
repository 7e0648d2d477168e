"""When do more components, merged into clusters by entropy, agree better with the classes than as many as classes?

Data sets of scikit-learn as they are (standardised, and reduced to some principal components), whose classes touch. A
Student-t mixture with as many components as classes, and ones with 1.5 and twice as many, merged by `merge_components`
and by the same criterion without its division by the rows of the two clusters, as in Baudry et al. (2010). Reported is
the adjusted Rand index with the classes, in percent, with 95 % t-intervals over starts.

    python -m benchmarks.merging --seeds 8
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.special import entr

from benchmarks.deep_clustering import merged_by
from benchmarks.few_labels import interval
from tmixture import StudentTMixture

HERE = Path(__file__).parent

# The loader, and to how many principal components the features are reduced.
DATA: dict[str, tuple[Callable[..., Any], int | None]] = {
    "digits, 20 principal components": (load_digits, 20),
    "wine": (load_wine, None),
    "iris": (load_iris, None),
    "breast cancer, 10 principal components": (load_breast_cancer, 10),
}
FACTORS = (1.5, 2)
STRUCTURES = ("diag", "tied")


def undivided(shares: Tensor, n_clusters: int) -> np.ndarray:
    """The cluster of each component: those two are merged of which that takes most from the entropy."""
    groups = [[k] for k in range(shares.shape[1])]
    while len(groups) > n_clusters:
        sums = torch.stack([shares[:, group].sum(1) for group in groups], dim=1)
        own = entr(sums).sum(0)
        gains = torch.stack([own + own[k] - entr(sums + sums[:, k, None]).sum(0) for k in range(len(groups))])
        one, other = divmod(int(gains.fill_diagonal_(-torch.inf).argmax()), len(groups))
        groups[min(one, other)] += groups.pop(max(one, other))
    labels = np.empty(shares.shape[1], dtype=int)
    for label, group in enumerate(groups):
        labels[group] = label
    return labels


def scores(x: Tensor, y: np.ndarray, structure: str, seed: int) -> dict[str, float]:
    """The adjusted Rand index of each way, in percent."""

    def fitted(n_components: int) -> StudentTMixture:
        return StudentTMixture(n_components, x.shape[1], covariance_type=structure, generator=seed).fit(x)

    n_classes = len(np.unique(y))
    found = {"as many as classes": fitted(n_classes).predict(x).numpy()}
    for factor in FACTORS:
        mixture = fitted(round(factor * n_classes))
        found[f"{factor:g} times as many, merged"] = merged_by(mixture, x, n_classes)
        found[f"{factor:g} times as many, not divided"] = undivided(mixture(x), n_classes)[mixture.predict(x).numpy()]
    return {way: 100 * adjusted_rand_score(y, clusters) for way, clusters in found.items()}


def table(seeds: int) -> list[str]:
    """Lines of Markdown: a row for each data set and structure."""
    lines: list[str] = []
    for name, (load, n_principal) in DATA.items():
        X, y = load(return_X_y=True)
        X = X if load is load_digits else StandardScaler().fit_transform(X)
        if n_principal:
            X = PCA(n_principal, random_state=0).fit_transform(X)
        for structure in STRUCTURES:
            runs = [scores(torch.from_numpy(X), y, structure, seed) for seed in range(seeds)]
            if not lines:
                lines += ["| data | scales | " + " | ".join(runs[0]) + " |", "|---|---|" + "---|" * len(runs[0])]
            cells = [interval(np.array([run[way] for run in runs])).rsplit(" ", 1)[0] for way in runs[0]]
            lines.append(f"| {name} | {structure} | " + " | ".join(cell.lstrip("+") for cell in cells) + " |")
    return lines


def main() -> None:
    """Run all data sets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=HERE / "MERGING.md")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = ["# Components merged", "", __doc__.split("\n\n")[1], "", *table(asked.seeds)]
    asked.output.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
