"""Scores of a zero-shot evaluation, and how far they can be trusted.

Per class: ROC AUC and average precision, with DeLong's test between two models. Macro averages over the classes, with
intervals and paired differences from a bootstrap that resamples patients. Over folds and seeds: paired t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

RESAMPLE_BLOCK = 64  # resamples computed at a time: (n_images, 64) doubles stay near the processor


def class_auc(labels: Bools, scores: Floats) -> Floats:
    """(n_classes,) ROC AUC of each column, nan where a class has no positive or no negative image.

    Args:
        labels: (n_images, n_classes), whether the finding is present.
        scores: (n_images, n_classes), larger where the model sees the finding.
    """
    return _per_defined_class(roc_auc_score, labels, scores)


def class_average_precision(labels: Bools, scores: Floats) -> Floats:
    """(n_classes,) average precision of each column, nan where a class is not defined; see `class_auc`."""
    return _per_defined_class(average_precision_score, labels, scores)


def _per_defined_class(metric: Callable[[Bools, Floats], float], labels: Bools, scores: Floats) -> Floats:
    _check(labels, scores)
    values = np.full(labels.shape[1], np.nan)
    for i in _defined(labels):
        values[i] = metric(labels[:, i], scores[:, i])
    return values


def _check(labels: Bools, scores: Floats) -> None:
    if labels.ndim != 2 or labels.dtype != bool or not len(labels):
        raise ValueError(
            f"labels: got {labels.dtype} of shape {labels.shape}, need bool of shape (n_images, n_classes)"
        )
    if scores.shape != labels.shape or not np.isfinite(scores).all():
        raise ValueError(f"scores: got shape {scores.shape}, need finite numbers of the labels' shape {labels.shape}")


def _defined(labels: Bools) -> npt.NDArray[np.intp]:
    """Classes with both positive and negative images."""
    return np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))


@dataclass(frozen=True)
class Macro:
    """Mean over the classes of a group that are defined, `n_defined` of `n_classes`; nan if none is."""

    mean: float
    n_defined: int
    n_classes: int


def class_groups(rare: Bools) -> dict[str, Bools]:
    """The paper's three groups of classes, as masks: all of them, the base classes, the rare ones."""
    return {"total": np.ones_like(rare), "base": ~rare, "rare": rare}


def macro(values: Floats, rare: Bools) -> dict[str, Macro]:
    """Macro averages of per-class values over "total", "base" and "rare".

    Args:
        values: (n_classes,), nan where a class is not defined.
        rare: (n_classes,), whether the class is rare.
    """
    groups = {}
    for name, members in class_groups(rare).items():
        defined = values[members & ~np.isnan(values)]
        groups[name] = Macro(float(defined.mean()) if len(defined) else np.nan, len(defined), int(members.sum()))
    return groups


@dataclass(frozen=True)
class DeLongTest:
    """AUC of models a and b on one class, the difference a − b, its standard error and two-sided p-value."""

    auc_a: float
    auc_b: float
    difference: float
    standard_error: float
    p: float


def delong_covariance(positive: Bools, scores: Floats) -> tuple[Floats, Floats]:
    """AUCs of several models on the same images and their covariance.

    DeLong, DeLong and Clarke-Pearson (Biometrics 1988), by mid-ranks in O(n log n): Sun and Xu (IEEE Signal Processing
    Letters 2014). Takes images as independent; the patient bootstrap does not.

    Args:
        positive: (n_images,), whether the finding is present; at least two images with it and two without.
        scores: (n_models, n_images).

    Returns:
        (n_models,) AUC and (n_models, n_models) covariance.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise ValueError(f"positive: got {m} positive and {n} negative image(s), need at least two of each")
    ranked = stats.rankdata(np.concatenate([scores[:, positive], scores[:, ~positive]], axis=1), axis=1)
    below_positive = (ranked[:, :m] - stats.rankdata(scores[:, positive], axis=1)) / n  # share of negatives below it
    above_negative = (
        1 - (ranked[:, m:] - stats.rankdata(scores[:, ~positive], axis=1)) / m
    )  # share of positives above it
    covariance = np.cov(below_positive) / m + np.cov(above_negative) / n
    return below_positive.mean(axis=1), np.atleast_2d(covariance)


def delong_test(positive: Bools, a: Floats, b: Floats) -> DeLongTest:
    """DeLong's paired test of two models' scores (n_images,) on one class."""
    auc, covariance = delong_covariance(positive, np.stack([a, b]))
    difference = float(auc[0] - auc[1])
    error = float(np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])))
    z = difference / error if error else np.inf * difference if difference else 0.0
    return DeLongTest(float(auc[0]), float(auc[1]), difference, error, float(2 * stats.norm.sf(abs(z))))


def bootstrap_auc(
    labels: Bools, scores: Floats, patients: npt.NDArray[np.integer], *, n_resamples: int = 1000, seed: int
) -> Floats:
    """Class AUCs of several models on resampled patients, the same resamples for all models.

    A resample draws as many patients as there are, with replacement, each with all of its images: images of a patient
    resemble each other, and resampling images would make the intervals too short. An image drawn w times has the
    weight w; AUC is Σ_ij w_i·w_j·[s_i > s_j] (½ for equal scores) over positives i and negatives j, over Σ_ij w_i·w_j.

    Args:
        labels: (n_images, n_classes), whether the finding is present.
        scores: (n_models, n_images, n_classes).
        patients: (n_images,) patient of each image.
        n_resamples: number of resamples.
        seed: of the resamples.

    Returns:
        (n_models, n_resamples, n_classes), nan where a resample has no positive or no negative image of the class.
    """
    for model_scores in scores:
        _check(labels, model_scores)
    if patients.shape != labels.shape[:1]:
        raise ValueError(f"patients: got shape {patients.shape}, need ({len(labels)},), a patient for each image")
    names, patient = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(seed)
    result = np.full((len(scores), n_resamples, labels.shape[1]), np.nan)
    for start in range(0, n_resamples, RESAMPLE_BLOCK):
        block = slice(start, min(start + RESAMPLE_BLOCK, n_resamples))
        draws = rng.integers(len(names), size=(block.stop - block.start, len(names)))
        times_drawn = np.stack([np.bincount(draw, minlength=len(names)) for draw in draws], axis=1)
        weights = times_drawn[patient].astype(np.float64)
        for i in _defined(labels):
            for model, model_scores in enumerate(scores):
                result[model, block, i] = _weighted_auc(labels[:, i], model_scores[:, i], weights)
    return result


def _weighted_auc(positive: Bools, scores: Floats, weights: Floats) -> Floats:
    """(n_resamples,) AUC under each column of weights (n_images, n_resamples)."""
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives])]
    mass = np.zeros((len(negatives) + 1, weights.shape[1]))  # mass[j]: weight of the j negatives with the lowest scores
    np.cumsum(weights[negatives], axis=0, out=mass[1:])
    below = np.searchsorted(scores[negatives], scores[positive], side="left")
    not_above = np.searchsorted(scores[negatives], scores[positive], side="right")
    won = np.einsum("ir,ir->r", weights[positive], mass[below] + mass[not_above]) / 2
    pairs = weights[positive].sum(axis=0) * mass[-1]
    return np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """A difference, its confidence interval and the two-sided p-value of no difference."""

    p: float


class MacroBootstrap:
    """Macro AUC of several models on one test set, with intervals from resampled patients.

    A class that a resample lost all positives of is left out of that resample's average, for all models alike.
    """

    def __init__(
        self,
        labels: Bools,
        scores: Mapping[str, Floats],
        patients: npt.NDArray[np.integer],
        rare: Bools,
        *,
        n_resamples: int = 1000,
        seed: int,
    ) -> None:
        """Resamples once, for all models; see `bootstrap_auc`.

        Args:
            labels: (n_images, n_classes), whether the finding is present.
            scores: (n_images, n_classes) of each model, by its name.
            patients: (n_images,) patient of each image.
            rare: (n_classes,), whether the class is rare.
            n_resamples: number of resamples.
            seed: of the resamples.
        """
        self.point = {name: macro(class_auc(labels, s), rare) for name, s in scores.items()}
        resampled = bootstrap_auc(labels, np.stack(list(scores.values())), patients, n_resamples=n_resamples, seed=seed)
        self._resampled = {
            name: {group: _mean_of_defined(auc[:, members]) for group, members in class_groups(rare).items()}
            for name, auc in zip(scores, resampled)
        }

    def interval(self, model: str, group: str = "total", *, level: float = 0.95) -> Interval:
        """Percentile interval of a model's macro AUC over "total", "base" or "rare"."""
        return Interval(self.point[model][group].mean, *_percentiles(self._resampled[model][group], level))

    def difference(self, a: str, b: str, group: str = "total", *, level: float = 0.95) -> Difference:
        """Macro AUC of model a minus model b, on the same resamples.

        The p-value is twice the smaller share of resamples on either side of zero, the data set itself counted in.
        """
        resampled = self._resampled[a][group] - self._resampled[b][group]
        resampled = resampled[~np.isnan(resampled)]
        smaller = min((resampled <= 0).sum(), (resampled >= 0).sum())
        p = min(1.0, 2 * (1 + smaller) / (1 + len(resampled)))
        value = self.point[a][group].mean - self.point[b][group].mean
        return Difference(value, *_percentiles(resampled, level), p=float(p))


def _mean_of_defined(auc: Floats) -> Floats:
    """Mean over the columns that are not nan; nan where there are none."""
    defined = ~np.isnan(auc)
    n_defined = defined.sum(axis=1)
    total = np.where(defined, auc, 0.0).sum(axis=1)
    return np.divide(total, n_defined, out=np.full(len(auc), np.nan), where=n_defined > 0)


def _percentiles(resampled: Floats, level: float) -> tuple[float, float]:
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return np.nan, np.nan
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Summary(Interval):
    """Mean over n runs (`value`), its t-interval, and the runs' standard deviation; nan where one run tells nothing."""

    sd: float
    n: int


@dataclass(frozen=True)
class PairedT(Difference):
    """Mean difference over n pairs of runs, its t-interval, p-value and t; in `wins` pairs a was better."""

    t: float
    wins: int
    n: int


def summarize(values: npt.ArrayLike, *, level: float = 0.95) -> Summary:
    """Mean, spread and t-interval of one number per run; of two runs the interval would be as wide as the world."""
    values = _runs(values, "values")
    n, mean = len(values), float(values.mean())
    sd = float(values.std(ddof=1)) if n > 1 else np.nan
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / np.sqrt(n) if n > 2 else np.nan
    return Summary(mean, mean - half, mean + half, sd, n)


def paired_t(a: npt.ArrayLike, b: npt.ArrayLike, *, test_over_train: float = 0.0, level: float = 0.95) -> PairedT:
    """Paired t-test of a − b over runs that share what else varies: the seed, or the fold.

    Folds share training images, so their differences are not independent: for J of them Nadeau and Bengio (Machine
    Learning 2003) put (1/J + n_test/n_train) in the place of 1/J in the variance of the mean.

    Args:
        a: one number per run of the one model.
        b: the same of the other.
        test_over_train: n_test/n_train of a fold, 1/(k−1) for k folds; 0 for independent runs, such as seeds.
        level: of the confidence interval.
    """
    a, b = _runs(a, "a"), _runs(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"b: got {len(b)} run(s), need {len(a)}, as many as a has")
    difference = a - b
    n, mean = len(difference), float(difference.mean())
    wins = int((difference > 0).sum())
    if n < 2:
        return PairedT(mean, np.nan, np.nan, p=np.nan, t=np.nan, wins=wins, n=n)
    error = float(difference.std(ddof=1) * np.sqrt(1 / n + test_over_train))
    t = mean / error if error else np.inf * mean if mean else 0.0
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return PairedT(mean, mean - half, mean + half, p=float(2 * stats.t.sf(abs(t), n - 1)), t=t, wins=wins, n=n)


def _runs(values: npt.ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name}: got {array}, need one finite number per run")
    return array
