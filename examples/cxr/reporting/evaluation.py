"""From the results of all runs to the numbers of the report, as one plain dictionary.

    {"arms": {arm: {"title", "trained", "n_runs", "auc": {group: score}, "average_precision": {group: score},
                    "classes": {finding: interval or None},
                    "cost": {quantity: {"mean", "sd", "n", "ratio"}}}},
     "reference": the arm that all others are compared with, or None,
     "comparisons": [{"a", "b", "auc": {group: difference}, "classes": {finding: difference with p or None} or None}],
     "cohort": {"images", "patients", "studies", "views": {view: images}, "findings": [
                   {"name", "rare", "cohort", "train", "test"}]},
     "runs": [{"seed", "fold", "test_images", "test_patients", "arms"}],
     "settings": {"level", "n_resamples", "seed", "test_over_train"}}

A group is "total", "base" or "rare". Numbers that do not exist (AUC without positives, the spread of one run) are None.

A score is {"value", "low", "high", "n_classes", "seeds", "folds", "runs"}. `value` is the mean over runs, `low` and
`high` the interval from resampled patients (none for the average precision); "seeds" and "folds" hold mean, sd,
t-interval and n over seeds (each the mean of its folds) and over folds (each the mean over seeds); "runs" has the
value, interval and number of defined classes of each (seed, fold).

A difference is a − b on the runs that have both: {"value", "patients", "seeds", "splits", "verdict", "runs"}. The first
three are three questions: would other patients show it ("patients", bootstrap), another seed on this cohort ("seeds",
paired t), another division of the cohort into training and test part ("splits", corrected paired t)? "verdict" repeats
the strictest of them that the number of runs allows, under its name in "test".

**Several runs, one interval.** The test parts of the folds of a seed share no patient, so their errors are independent
and add up in squares. Every seed tests the same cohort again, so more seeds are not counted as more patients: the
limits are averaged over seeds. See `pooled`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from cxr.data.cohort import Cohort
from cxr.reporting.results import Result
from cxr.reporting.statistics import (
    Difference,
    Interval,
    MacroBootstrap,
    class_average_precision,
    delong_covariance,
    delong_test,
    macro,
    paired_t,
    summarize,
)
from cxr.training.arms import ABLATION, ARMS, VARIANTS

LEVEL = 0.95
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
GROUPS = ("total", "base", "rare")
LEAST_RUNS = 3  # a t-test on two differences has one degree of freedom, and an interval as wide as the world
COSTS = ("seconds_per_step", "flops_per_step", "peak_bytes")
KEY_PAIRS = (("cxr-cml", "meta"), ("cxr-cml", "meta-frequency"), ("cxr-cml-frequency", "meta-frequency"))
"""The comparisons that the method stands or falls with: these are made for every finding, too."""

Key = tuple[int, int]  # seed and fold of a run
Runs = dict[Key, dict[str, Result]]
Value = TypeVar("Value")

PAPER: dict[str, Any] = {
    "source": (
        "CXR-CML: Improved zero-shot classification of long-tailed multi-label diseases in Chest X-Rays, MICCAI 2025"
    ),
    "data_set": "MIMIC-CXR-JPG, 234,800 images, CXR-LT 2024 labels (40 findings, 12 rare)",
    "table2": {
        "MedCLIP": {"total": 0.476, "base": 0.488, "rare": 0.450},
        "MedKLIP": {"total": 0.576, "base": 0.574, "rare": 0.574},
        "SLIP": {"total": 0.502, "base": 0.505, "rare": 0.495},
        "CheXzero": {"total": 0.644, "base": 0.647, "rare": 0.631},
        "CheXzero + meta labels": {"total": 0.691, "base": 0.681, "rare": 0.707},  # printed in Table 3
        "CXR-CML": {"total": 0.715, "base": 0.711, "rare": 0.720},
    },
    "spread": "10 runs, standard deviation below 0.04; p < 1e-5 against CheXzero, by a test that is not named",
    "table3": {
        "ν = 2": {"total": 0.710, "base": 0.710, "rare": 0.710},
        "ν = 4": {"total": 0.715, "base": 0.711, "rare": 0.720},
        "ν = 6": {"total": 0.715, "base": 0.710, "rare": 0.718},
        "ν = ∞": {"total": 0.716, "base": 0.713, "rare": 0.720},
        "batch size 16": {"total": 0.705, "base": 0.700, "rare": 0.710},
        "batch size 32": {"total": 0.715, "base": 0.711, "rare": 0.720},
        "batch size 64": {"total": 0.711, "base": 0.707, "rare": 0.716},
    },
    "table4": {"seconds_per_step": {"CheXzero": 53.39, "CXR-CML": 66.28, "ratio": 1.2415}, "flops_ratio": 1.2083},
}
"""The paper's own numbers: its Tables 2 (AUC of the methods), 3 (ablation) and 4 (cost)."""

PAPER_ROWS = {"start": "CheXzero", "meta": "CheXzero + meta labels", "cxr-cml": "CXR-CML"}
"""Which row of the paper's Table 2 an arm reproduces."""


def evaluate(
    results: Sequence[Result],
    *,
    rare: Collection[str],
    seed: int = 0,
    cohort: Cohort | None = None,
    n_resamples: int = 1000,
) -> dict[str, Any]:
    """All numbers of the report; the module's docstring says where each is found.

    Args:
        results: of all runs, from `cxr.reporting.results.load_results`; an arm may be missing in some of them.
        rare: names of the rare findings.
        seed: of the bootstrap.
        cohort: the images that the runs were split from, for the cohort table; without it only test images are counted.
        n_resamples: of the bootstrap.

    Raises:
        ValueError: there are no results, they disagree about findings or test images, or `rare` names something else.
    """
    runs = _by_run(results)
    names = results[0].label_names
    unknown = sorted(set(rare) - set(names))
    if unknown:
        raise ValueError(f"rare: {unknown} are no findings of these results, which are {names}")
    is_rare = np.array([name in set(rare) for name in names])
    arms = sorted({result.arm for result in results}, key=_order)
    reference = next((arm for arm in ("meta", *arms) if arm in arms and _trained(arm)), None)
    bootstraps = {
        key: MacroBootstrap(
            _any(run).labels,
            {arm: _scores(result) for arm, result in run.items()},
            _any(run).patients,
            is_rare,
            n_resamples=n_resamples,
            seed=seed,
        )
        for key, run in runs.items()
    }
    return {
        "arms": {arm: _arm(arm, runs, bootstraps, is_rare, reference) for arm in arms},
        "reference": reference,
        "comparisons": [_comparison(a, b, runs, bootstraps) for a, b in _pairs(arms, reference)],
        "cohort": _cohort(runs, is_rare, cohort),
        "runs": [
            {
                "seed": key[0],
                "fold": key[1],
                "test_images": len(_any(run).rows),
                "test_patients": len(np.unique(_any(run).patients)),
                "arms": sorted(run, key=_order),
            }
            for key, run in runs.items()
        ],
        "settings": {
            "level": LEVEL,
            "n_resamples": n_resamples,
            "seed": seed,
            "test_over_train": _test_over_train([_any(run) for run in runs.values()]),
        },
    }


def _by_run(results: Sequence[Result]) -> Runs:
    """Results by (seed, fold) and arm, once they are known to belong together."""
    if not results:
        raise ValueError("results: none given, at least one is needed")
    runs: Runs = {}
    for result in results:
        run = runs.setdefault((result.seed, result.fold), {})
        where = f"results: arm {result.arm!r} of seed {result.seed}, fold {result.fold}"
        if result.arm in run:
            raise ValueError(f"{where} is there twice")
        if result.label_names != results[0].label_names:
            raise ValueError(f"{where} has findings {result.label_names}, the others have {results[0].label_names}")
        first = next(iter(run.values()), result)
        if not (np.array_equal(result.rows, first.rows) and np.array_equal(result.labels, first.labels)):
            raise ValueError(f"{where} was tested on other images or labels than arm {first.arm!r}")
        run[result.arm] = result
    return dict(sorted(runs.items()))


def _any(mapping: dict[Any, Value]) -> Value:
    """The first value of a dictionary whose values agree in what is asked of them."""
    return next(iter(mapping.values()))


def _order(arm: str) -> tuple[int, str]:
    """The order of `cxr.training.arms`, unknown arms last."""
    return (list(ARMS).index(arm) if arm in ARMS else len(ARMS), arm)


def _trained(arm: str) -> bool:
    return arm not in ARMS or ARMS[arm].trained


def _scores(result: Result) -> npt.NDArray[np.float64]:
    return result.probabilities.astype(np.float64)


def _pairs(arms: list[str], reference: str | None) -> list[tuple[str, str]]:
    """Every arm with the reference; the key pairs; variants and ablations with the method that they vary."""
    pairs = [(arm, reference) for arm in arms if reference is not None and arm != reference]
    pairs += [(a, b) for a, b in (("meta", "start"), *KEY_PAIRS) if a in arms and b in arms]
    pairs += [(arm, "cxr-cml") for arm in (*VARIANTS, *ABLATION) if arm in arms and "cxr-cml" in arms]
    return list(dict.fromkeys(pairs))


# ------------------------------------------------------------------ intervals over several runs


def pooled(intervals: dict[Key, Interval]) -> Interval | None:
    """The interval of the mean over runs, from that of each run; None where no run has a value.

    Within a seed the test parts of the folds are disjoint, so the distances of the limits from the values add up in
    squares (for limits that are not symmetric: Zou and Donner, Statistics in Medicine 2008). Over seeds, which test the
    same cohort again, the distances are averaged.
    """
    by_seed: dict[int, list[Interval]] = {}
    for (seed, _), interval in intervals.items():
        if np.isfinite(interval.value):
            by_seed.setdefault(seed, []).append(interval)
    if not by_seed:
        return None
    means, below, above = [], [], []
    for folds in by_seed.values():
        value, low, high = np.array([(i.value, i.low, i.high) for i in folds]).T
        means.append(value.mean())
        below.append(np.sqrt(((value - low) ** 2).sum()) / len(folds))
        above.append(np.sqrt(((high - value) ** 2).sum()) / len(folds))
    mean = float(np.mean(means))
    return Interval(mean, mean - float(np.mean(below)), mean + float(np.mean(above)))


def _grouped(values: dict[Key, float], position: int) -> dict[int, float]:
    """Means over the runs that share a seed (position 0) or a fold (position 1); undefined values are left out."""
    groups: dict[int, list[float]] = {}
    for key, value in values.items():
        if np.isfinite(value):
            groups.setdefault(key[position], []).append(value)
    return {group: float(np.mean(members)) for group, members in sorted(groups.items())}


def _test_over_train(results: Iterable[Result]) -> float:
    """n_test/n_train, from the positives in both parts: the splits keep their proportions."""
    shares = [result.labels.sum() / max(1, result.train_counts.sum()) for result in results]
    return float(np.mean(shares))


def _plain(value: Any) -> Any:
    """A dataclass of numbers as a dictionary for JSON, with None for what is not a number."""
    if value is None:
        return None
    return {name: _number(v) for name, v in asdict(value).items()}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------ arms


def _arm(
    arm: str, runs: Runs, bootstraps: dict[Key, MacroBootstrap], rare: npt.NDArray[np.bool_], reference: str | None
) -> dict[str, Any]:
    own = {key: run[arm] for key, run in runs.items() if arm in run}
    names = _any(own).label_names
    precision = {
        key: macro(class_average_precision(result.labels, _scores(result)), rare) for key, result in own.items()
    }
    auc, average_precision = {}, {}
    for group in GROUPS:
        intervals = {key: bootstraps[key].interval(arm, group, level=LEVEL) for key in own}
        points = {key: bootstraps[key].point[arm][group] for key in own}
        auc[group] = _score(intervals, {key: point.n_defined for key, point in points.items()})
        bare = {key: Interval(precision[key][group].mean, np.nan, np.nan) for key in own}
        average_precision[group] = _score(bare, {key: precision[key][group].n_defined for key in own})
        for score in (auc[group], average_precision[group]):
            score["n_classes"] = _any(points).n_classes
    return {
        "title": ARMS[arm].title if arm in ARMS else arm,
        "trained": _trained(arm),
        "n_runs": len(own),
        "auc": auc,
        "average_precision": average_precision,
        "classes": {name: _class_auc(own, i) for i, name in enumerate(names)},
        "cost": _cost(arm, runs, reference),
    }


def _score(intervals: dict[Key, Interval], n_defined: dict[Key, int]) -> dict[str, Any]:
    values = {key: interval.value for key, interval in intervals.items()}
    seeds, folds = (list(_grouped(values, position).values()) for position in (0, 1))
    mean = pooled(intervals) or Interval(np.nan, np.nan, np.nan)
    return {
        **_plain(mean),
        "seeds": _plain(summarize(seeds)) if seeds else None,
        "folds": _plain(summarize(folds)) if folds else None,
        "runs": [
            {"seed": key[0], "fold": key[1], "n_defined": n_defined[key], **_plain(interval)}
            for key, interval in intervals.items()
        ],
    }


def _class_auc(own: dict[Key, Result], finding: int) -> dict[str, Any] | None:
    """AUC of one finding with DeLong's interval, over the runs that test at least two images with and without it."""
    intervals = {}
    for key, result in own.items():
        positive = result.labels[:, finding]
        if _enough(positive):
            auc, covariance = delong_covariance(positive, _scores(result)[None, :, finding])
            error = Z * float(np.sqrt(covariance[0, 0]))
            intervals[key] = Interval(float(auc[0]), float(auc[0]) - error, float(auc[0]) + error)
    mean = pooled(intervals)
    return None if mean is None else {"value": mean.value, "low": max(0.0, mean.low), "high": min(1.0, mean.high)}


def _enough(positive: npt.NDArray[np.bool_]) -> bool:
    return min(int(positive.sum()), int((~positive).sum())) >= 2


def _cost(arm: str, runs: Runs, reference: str | None) -> dict[str, Any]:
    """Mean and spread over runs, and the mean ratio to the reference's cost in the same run."""
    cost = {}
    for quantity in COSTS:
        measured = [run[arm].cost[quantity] for run in runs.values() if arm in run and quantity in run[arm].cost]
        ratios = [
            run[arm].cost[quantity] / run[reference].cost[quantity]
            for run in runs.values()
            if arm in run and reference in run and run[arm].cost.get(quantity) and run[reference].cost.get(quantity)
        ]
        if measured:
            summary = summarize(measured)
            ratio = _plain(summarize(ratios)) if ratios else None
            cost[quantity] = {"mean": summary.value, "sd": _number(summary.sd), "n": summary.n, "ratio": ratio}
    return cost


# ------------------------------------------------------------------ comparisons


def _comparison(a: str, b: str, runs: Runs, bootstraps: dict[Key, MacroBootstrap]) -> dict[str, Any]:
    both = {key: run for key, run in runs.items() if a in run and b in run}
    names = _any(_any(runs)).label_names
    classes = None
    if (a, b) in KEY_PAIRS:
        classes = {name: _class_difference(a, b, both, i) for i, name in enumerate(names)}
    auc = {}
    for group in GROUPS:
        differences = {key: bootstraps[key].difference(a, b, group, level=LEVEL) for key in both}
        points = {arm: {key: bootstraps[key].point[arm][group].mean for key in both} for arm in (a, b)}
        auc[group] = _difference(differences, points[a], points[b], {key: run[a] for key, run in both.items()})
    return {"a": a, "b": b, "auc": auc, "classes": classes}


def _difference(
    differences: dict[Key, Difference], a: dict[Key, float], b: dict[Key, float], results: dict[Key, Result]
) -> dict[str, Any] | None:
    """The difference over all runs and the three tests of it; None where no run has both values."""
    differences = {key: d for key, d in differences.items() if np.isfinite(d.value)}
    mean = pooled(dict(differences))
    if mean is None:
        return None
    a, b = ({key: values[key] for key in differences} for values in (a, b))
    seeds = paired_t(list(_grouped(a, 0).values()), list(_grouped(b, 0).values()), level=LEVEL)
    splits = paired_t(
        _over_equal_splits(a, results),
        _over_equal_splits(b, results),
        test_over_train=_test_over_train(results[key] for key in differences),
        level=LEVEL,
    )
    patients = {"low": mean.low, "high": mean.high, "p": _patients_p(mean, list(differences.values()))}
    difference = {
        "value": mean.value,
        "patients": {name: _number(v) for name, v in patients.items()},
        "seeds": _plain(seeds),
        "splits": _plain(splits),
        "runs": [{"seed": key[0], "fold": key[1], **_plain(d)} for key, d in differences.items()],
    }
    test = "splits" if splits.n >= LEAST_RUNS else "seeds" if seeds.n >= LEAST_RUNS else "patients"
    difference["verdict"] = {"test": test, **{name: difference[test][name] for name in ("low", "high", "p")}}
    return difference


def _over_equal_splits(values: dict[Key, float], results: dict[Key, Result]) -> list[float]:
    """Means over the runs that were tested on the same images: seeds that share a split are no new split."""
    splits: dict[bytes, list[float]] = {}
    for key, value in values.items():
        splits.setdefault(np.sort(results[key].rows).tobytes(), []).append(value)
    return [float(np.mean(members)) for members in splits.values()]


def _patients_p(mean: Interval, differences: list[Difference]) -> float:
    """The bootstrap's own p of a single run; for several, the normal one that belongs to the pooled interval."""
    if len(differences) == 1:
        return differences[0].p
    error = (mean.high - mean.low) / (2 * Z)
    return float(2 * stats.norm.sf(abs(mean.value) / error)) if error else float(mean.value == 0)


def _class_difference(a: str, b: str, both: Runs, finding: int) -> dict[str, Any] | None:
    """Difference of the AUC of one finding with DeLong's interval and p-value."""
    intervals = {}
    for key, run in both.items():
        positive = run[a].labels[:, finding]
        if _enough(positive):
            test = delong_test(positive, _scores(run[a])[:, finding], _scores(run[b])[:, finding])
            error = Z * test.standard_error
            intervals[key] = Interval(test.difference, test.difference - error, test.difference + error)
    mean = pooled(intervals)
    if mean is None:
        return None
    return {**_plain(mean), "p": _number(_patients_p(mean, []))}


# ------------------------------------------------------------------ cohort


def _cohort(runs: Runs, rare: npt.NDArray[np.bool_], cohort: Cohort | None) -> dict[str, Any]:
    """Table 1: what there is to see, and how often. Counts of the training and test part are means over runs."""
    results = [_any(run) for run in runs.values()]
    train = np.mean([result.train_counts for result in results], axis=0)
    test = np.mean([result.labels.sum(axis=0) for result in results], axis=0)
    order = np.argsort(-(train + test), kind="stable")
    names = results[0].label_names
    in_cohort = None if cohort is None else dict(zip(cohort.label_names, cohort.labels.sum(axis=0).tolist()))
    return {
        "images": None if cohort is None else len(cohort),
        "patients": None if cohort is None else len(np.unique(cohort.subject_ids)),
        "studies": None if cohort is None else int(cohort.images["study_id"].nunique()),
        "views": None if cohort is None else {k: int(v) for k, v in cohort.images["view"].value_counts().items()},
        "findings": [
            {
                "name": names[i],
                "rare": bool(rare[i]),
                "cohort": None if in_cohort is None else in_cohort.get(names[i]),
                "train": float(train[i]),
                "test": float(test[i]),
            }
            for i in order
        ],
    }
