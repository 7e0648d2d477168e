"""From the results of all runs to the numbers of the report.

**Several runs, one interval.** The test parts of the folds of a seed share no patient, so their errors are independent
and add up in squares. Every seed tests the same cohort again, so more seeds are not counted as more patients: the
limits are averaged over seeds. See `pooled`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from cxr.data.cohort import Cohort
from cxr.reporting.metrics import (
    GROUPS,
    ArmMetrics,
    CohortCounts,
    Comparison,
    Cost,
    EvaluatedRun,
    EvaluationSettings,
    FindingCounts,
    Metrics,
    RunDifference,
    RunScore,
    Score,
    ScoreDifference,
    Verdict,
)
from cxr.reporting.results import Result
from cxr.reporting.statistics import (
    Difference,
    Interval,
    Macro,
    MacroBootstrap,
    Summary,
    class_auc,
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
LEAST_RUNS = 3  # a t-test on two differences has one degree of freedom, and an interval as wide as the world
COSTS = ("seconds_per_step", "flops_per_step", "peak_bytes")
KEY_PAIRS = (("cxr-cml", "meta"), ("cxr-cml", "meta-frequency"), ("cxr-cml-frequency", "meta-frequency"))
"""The comparisons that the method stands or falls with: these are made for every finding, too."""

Key = tuple[int, int]  # seed and fold of a run
Runs = dict[Key, dict[str, Result]]
Value = TypeVar("Value")


def evaluate(
    results: Sequence[Result],
    *,
    rare: Collection[str],
    seed: int = 0,
    cohort: Cohort | None = None,
    n_resamples: int = 1000,
) -> Metrics:
    """All numbers of the report.

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
    return Metrics(
        arms={arm: _arm(arm, runs, bootstraps, is_rare, reference) for arm in arms},
        reference=reference,
        comparisons=[_comparison(a, b, runs, bootstraps) for a, b in _pairs(arms, reference)],
        cohort=_cohort(runs, is_rare, cohort),
        runs=[_test_part(key, run) for key, run in runs.items()],
        settings=EvaluationSettings(LEVEL, n_resamples, seed, _test_over_train([_any(run) for run in runs.values()])),
    )


def _test_part(key: Key, run: dict[str, Result]) -> EvaluatedRun:
    tested = _any(run)
    return EvaluatedRun(*key, len(tested.rows), len(np.unique(tested.patients)), sorted(run, key=_order))


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
    """Every arm with the reference; the key pairs; variants and ablations with the method; what arms ask for."""
    pairs = [(arm, reference) for arm in arms if reference is not None and arm != reference]
    pairs += [(a, b) for a, b in (("meta", "start"), *KEY_PAIRS) if a in arms and b in arms]
    pairs += [(arm, "cxr-cml") for arm in (*VARIANTS, *ABLATION) if arm in arms and "cxr-cml" in arms]
    pairs += [(arm, other) for arm in arms if arm in ARMS for other in ARMS[arm].compared_with if other in arms]
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


# ------------------------------------------------------------------ arms


def _arm(
    arm: str, runs: Runs, bootstraps: dict[Key, MacroBootstrap], rare: npt.NDArray[np.bool_], reference: str | None
) -> ArmMetrics:
    own = {key: run[arm] for key, run in runs.items() if arm in run}
    names = _any(own).label_names
    precision = {
        key: macro(class_average_precision(result.labels, _scores(result)), rare) for key, result in own.items()
    }
    bare = [
        macro(class_auc(result.labels, result.without_axis.astype(np.float64)), rare)
        for result in own.values()
        if np.isfinite(result.without_axis).all()
    ]
    auc, average_precision = {}, {}
    for group in GROUPS:
        intervals = {key: bootstraps[key].interval(arm, group, level=LEVEL) for key in own}
        auc[group] = _score(intervals, {key: bootstraps[key].point[arm][group] for key in own})
        alone = {key: Interval(precision[key][group].mean, np.nan, np.nan) for key in own}
        average_precision[group] = _score(alone, {key: precision[key][group] for key in own})
    return ArmMetrics(
        title=ARMS[arm].title if arm in ARMS else arm,
        trained=_trained(arm),
        n_runs=len(own),
        auc=auc,
        without_axis={group: float(np.mean([run[group].mean for run in bare] or [np.nan])) for group in GROUPS},
        average_precision=average_precision,
        classes={name: _class_auc(own, i) for i, name in enumerate(names)},
        cost=_cost(arm, runs, reference),
    )


def _score(intervals: dict[Key, Interval], points: dict[Key, Macro]) -> Score:
    values = {key: interval.value for key, interval in intervals.items()}
    seeds, folds = (list(_grouped(values, position).values()) for position in (0, 1))
    mean = pooled(intervals) or Interval(np.nan, np.nan, np.nan)
    return Score(
        mean.value,
        mean.low,
        mean.high,
        n_classes=_any(points).n_classes,
        seeds=_summary_of_auc(seeds) if seeds else None,
        folds=_summary_of_auc(folds) if folds else None,
        runs=[RunScore(i.value, i.low, i.high, *key, n_defined=points[key].n_defined) for key, i in intervals.items()],
    )


def _summary_of_auc(values: list[float]) -> Summary:
    summary = summarize(values)
    low, high = np.clip([summary.low, summary.high], 0, 1).tolist()  # nan stays nan
    return replace(summary, low=low, high=high)


def _class_auc(own: dict[Key, Result], finding: int) -> Interval | None:
    """AUC of one finding with DeLong's interval, over the runs that test at least two images with and without it."""
    intervals = {}
    for key, result in own.items():
        positive = result.labels[:, finding]
        if _enough(positive):
            auc, covariance = delong_covariance(positive, _scores(result)[None, :, finding])
            error = Z * float(np.sqrt(covariance[0, 0]))
            intervals[key] = Interval(float(auc[0]), float(auc[0]) - error, float(auc[0]) + error)
    mean = pooled(intervals)
    return None if mean is None else Interval(mean.value, max(0.0, mean.low), min(1.0, mean.high))


def _enough(positive: npt.NDArray[np.bool_]) -> bool:
    return min(int(positive.sum()), int((~positive).sum())) >= 2


def _cost(arm: str, runs: Runs, reference: str | None) -> dict[str, Cost]:
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
            cost[quantity] = Cost(summary.value, summary.sd, summary.n, summarize(ratios) if ratios else None)
    return cost


# ------------------------------------------------------------------ comparisons


def _comparison(a: str, b: str, runs: Runs, bootstraps: dict[Key, MacroBootstrap]) -> Comparison:
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
    return Comparison(a, b, auc, classes)


def _difference(
    differences: dict[Key, Difference], a: dict[Key, float], b: dict[Key, float], results: dict[Key, Result]
) -> ScoreDifference | None:
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
    patients = Difference(mean.value, mean.low, mean.high, p=_patients_p(mean, list(differences.values())))
    test, strictest = (
        ("splits", splits)
        if splits.n >= LEAST_RUNS
        else ("seeds", seeds)
        if seeds.n >= LEAST_RUNS
        else ("patients", patients)
    )
    return ScoreDifference(
        value=mean.value,
        patients=patients,
        seeds=seeds,
        splits=splits,
        verdict=Verdict(test, strictest.low, strictest.high, strictest.p),
        runs=[RunDifference(d.value, d.low, d.high, d.p, *key) for key, d in differences.items()],
    )


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


def _class_difference(a: str, b: str, both: Runs, finding: int) -> Difference | None:
    """Difference of the AUC of one finding with DeLong's interval and p-value."""
    intervals = {}
    for key, run in both.items():
        positive = run[a].labels[:, finding]
        if _enough(positive):
            test = delong_test(positive, _scores(run[a])[:, finding], _scores(run[b])[:, finding])
            error = Z * test.standard_error
            intervals[key] = Interval(test.difference, test.difference - error, test.difference + error)
    mean = pooled(intervals)
    return None if mean is None else Difference(mean.value, mean.low, mean.high, p=_patients_p(mean, []))


# ------------------------------------------------------------------ cohort


def _cohort(runs: Runs, rare: npt.NDArray[np.bool_], cohort: Cohort | None) -> CohortCounts:
    """Table 1: what there is to see, and how often. Counts of the training and test part are means over runs."""
    results = [_any(run) for run in runs.values()]
    train = np.mean([result.train_counts for result in results], axis=0)
    test = np.mean([result.labels.sum(axis=0) for result in results], axis=0)
    names = results[0].label_names
    in_cohort: dict[str, int] = (
        {} if cohort is None else dict(zip(cohort.label_names, cohort.labels.sum(axis=0).tolist()))
    )
    findings = [
        FindingCounts(names[i], bool(rare[i]), in_cohort.get(names[i]), float(train[i]), float(test[i]))
        for i in np.argsort(-(train + test), kind="stable")
    ]
    if cohort is None:
        return CohortCounts(None, None, None, None, findings)
    return CohortCounts(
        images=len(cohort),
        patients=len(np.unique(cohort.subject_ids)),
        studies=int(cohort.images["study_id"].nunique()),
        views={str(view): int(n) for view, n in cohort.images["view"].value_counts().items()},
        findings=findings,
    )
