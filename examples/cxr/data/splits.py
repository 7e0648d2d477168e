"""Splits by patient that keep the proportions of the findings, the rare ones first.

No library stratifies many labels and keeps groups together (scikit-learn's `StratifiedGroupKFold` refuses multi-label
targets, `iterative-stratification` knows no groups). So this takes the order of iterative stratification (Sechidis,
Tsoumakas and Vlahavas, ECML PKDD 2011), rarest finding first, with a whole patient in the place of a single sample; and
because a patient brings many findings at once, the part is chosen by all of them and not only by the rarest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts: fitted on, steering the scheduler and the model selection, reported on."""

    train: Rows
    validation: Rows
    test: Rows


def holdout(
    labels: Labels, patients: npt.NDArray[np.integer], *, test: float = 0.2, validation: float = 0.1, seed: int
) -> Split:
    """One patient-disjoint split.

    Args:
        labels: (n_images, n_labels), whether the finding is present.
        patients: (n_images,) patient of each image.
        test: share of the images to report on.
        validation: share of the remaining images that steers the training.
        seed: of the order in which patients of equal claim are dealt out.
    """
    shares = ((1 - test) * (1 - validation), (1 - test) * validation, test)
    part = stratify_patients(labels, patients, shares, seed)
    return Split(*(np.flatnonzero(part == i) for i in range(3)))


def k_fold(
    labels: Labels, patients: npt.NDArray[np.integer], *, n_folds: int = 5, validation: float = 0.1, seed: int
) -> list[Split]:
    """Patient-disjoint folds, each once the test part; see `holdout` for the arguments."""
    if n_folds < 2:
        raise ValueError(f"n_folds: got {n_folds}, need at least 2")
    fold = stratify_patients(labels, patients, (1 / n_folds,) * n_folds, seed)
    splits = []
    for i in range(n_folds):
        rest = np.flatnonzero(fold != i)
        part = stratify_patients(labels[rest], patients[rest], (1 - validation, validation), seed + i)
        splits.append(Split(rest[part == 0], rest[part == 1], np.flatnonzero(fold == i)))
    return splits


def stratify_patients(
    labels: Labels, patients: npt.NDArray[np.integer], shares: Sequence[float], seed: int
) -> npt.NDArray[np.intp]:
    """Deals patients out to parts so that each part gets its share of every finding.

    The finding with the fewest images left to deal is dealt first, while there is still freedom: each of its patients,
    those with most such images first, goes where it most reduces Σ_f (images of f still missing / all images of f)²,
    divided by the part's share. That every image belongs to some part is one more "finding" f, present in all images.

    Args:
        labels: (n_images, n_labels), whether the finding is present.
        patients: (n_images,) patient of each image.
        shares: share of the images of each part; they sum to one.
        seed: of the order in which patients of equal claim are dealt out.

    Returns:
        (n_images,) the part of each image, which is the same for all images of a patient.

    Raises:
        ValueError: shapes or shares are wrong, or there are too few patients to fill the parts.
    """
    if labels.ndim != 2 or patients.shape != labels.shape[:1]:
        raise ValueError(f"patients: got shape {patients.shape}, need a patient for each row of labels, {labels.shape}")
    if min(shares) <= 0 or not np.isclose(sum(shares), 1):
        raise ValueError(f"shares: got {tuple(shares)}, need positive numbers that sum to 1")
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < len(shares):
        raise ValueError(f"patients: got {len(names)} patient(s), need at least {len(shares)}, one for each part")

    counts = np.zeros((len(names), labels.shape[1] + 1), dtype=np.int64)  # images of each patient by finding; last: all
    np.add.at(counts, patient, np.column_stack([labels, np.ones(len(labels), dtype=bool)]))
    left = counts.sum(axis=0)  # images of each finding that are still to deal
    present = left > 0
    relative = counts[:, present] / left[present]
    missing = np.repeat(np.array(shares)[:, None], present.sum(), axis=1)  # share of each finding that each part lacks
    part_of = np.full(len(names), -1)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    while left.any():
        finding = min(np.flatnonzero(left), key=lambda f: left[f])
        holders = shuffled[(part_of[shuffled] < 0) & (counts[shuffled, finding] > 0)]
        for p in holders[np.argsort(-counts[holders, finding], kind="stable")]:
            change = (relative[p] * (relative[p] - 2 * missing)).sum(axis=1) / shares  # (m - r)² - m², over findings
            part_of[p] = part = np.argmin(change)
            missing[part] -= relative[p]
            left -= counts[p]
    empty = sorted(set(range(len(shares))) - set(part_of.tolist()))
    if empty:
        raise ValueError(f"shares: part(s) {empty} of {tuple(shares)} got no patient out of {len(names)}")
    return part_of[patient]
