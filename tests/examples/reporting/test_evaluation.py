import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cxr.reporting.evaluation import evaluate, pooled
from cxr.reporting.metrics import plain
from cxr.reporting.results import Result
from cxr.reporting.statistics import Interval, MacroBootstrap, class_auc, delong_test

NAMES = ["common", "usual", "rare one", "rare two"]
RARE = {"rare one", "rare two"}
QUALITY = {"start": 0.0, "meta": 1.0, "meta-frequency": 1.2, "cxr-cml": 1.5}


def simulated_result(arm, seed=0, fold=0, n_patients=40, quality=None):
    """Test images of one split: the same for all arms of a (seed, fold), scored better by the better arms."""
    shared = np.random.default_rng([seed, fold])
    patients = np.repeat(np.arange(n_patients) + 1000 * fold, shared.integers(1, 4, n_patients))
    labels = shared.random((len(patients), 4)) < [0.5, 0.3, 0.15, 0.1]
    labels[:4], labels[4:8] = True, False  # every finding is there and not there
    noise = np.random.default_rng([seed, fold, *arm.encode()]).normal(size=labels.shape)
    scores = noise + labels * (QUALITY.get(arm, 1.0) if quality is None else quality)
    trained = arm != "start"
    return Result(
        arm=arm,
        seed=seed,
        fold=fold,
        label_names=NAMES,
        rows=np.arange(len(patients)) + 10_000 * fold + 100_000 * seed,
        patients=patients,
        labels=labels,
        probabilities=(1 / (1 + np.exp(-scores))).astype(np.float32),
        without_axis=(1 / (1 + np.exp(scores))).astype(np.float32),
        embeddings=np.ones((len(patients), 2), np.float32),
        clusters=np.full(len(patients), -1),
        train_counts=4 * labels.sum(axis=0),
        history=[],
        cost={"seconds_per_step": 2.0 if arm == "cxr-cml" else 1.0} if trained else {},
    )


def simulated_results(arms, seeds=1, folds=1):
    return [simulated_result(arm, s, f) for s in range(seeds) for f in range(folds) for arm in arms]


def compared(metrics, a, b):
    (found,) = (c for c in metrics.comparisons if (c.a, c.b) == (a, b))
    return found


def evaluated(results, rare=RARE):
    metrics = evaluate(results, rare=rare, seed=0, n_resamples=50)
    json.dumps(plain(metrics), allow_nan=False)
    return metrics


# Scores


def test_perfect_and_blind_models_have_the_aucs_known_beforehand():
    results = simulated_results(["meta", "cxr-cml"], folds=2)
    results = [
        replace(r, probabilities=(r.labels if r.arm == "cxr-cml" else np.full(r.labels.shape, 0.5)).astype(np.float32))
        for r in results
    ]
    metrics = evaluated(results)
    for group in ("total", "base", "rare"):
        for arm, auc in (("cxr-cml", 1.0), ("meta", 0.5)):
            score = metrics.arms[arm].auc[group]
            assert (score.value, score.low, score.high) == (auc, auc, auc)
        assert metrics.arms["cxr-cml"].average_precision[group].value == pytest.approx(1)
        difference = compared(metrics, "cxr-cml", "meta").auc[group]
        assert (difference.value, difference.patients.low, difference.patients.high) == (0.5, 0.5, 0.5)
    assert metrics.arms["cxr-cml"].classes["rare two"] == Interval(1.0, 1.0, 1.0)


def test_a_single_run_is_the_bootstrap_of_its_test_set_and_has_no_spread():
    results = simulated_results(["meta", "cxr-cml"])
    metrics = evaluated(results)
    scores = {r.arm: r.probabilities.astype(float) for r in results}
    rare = np.array([False, False, True, True])
    bootstrap = MacroBootstrap(results[0].labels, scores, results[0].patients, rare, n_resamples=50, seed=0)
    for group in ("total", "base", "rare"):
        score, expected = metrics.arms["cxr-cml"].auc[group], bootstrap.interval("cxr-cml", group)
        assert (score.value, score.low, score.high) == pytest.approx((expected.value, expected.low, expected.high))
        assert math.isnan(score.seeds.sd)
        difference, expected = (
            compared(metrics, "cxr-cml", "meta").auc[group],
            bootstrap.difference("cxr-cml", "meta", group),
        )
        verdict = difference.verdict
        assert verdict.test == "patients"
        assert (verdict.low, verdict.high, verdict.p) == pytest.approx((expected.low, expected.high, expected.p))
        assert math.isnan(difference.seeds.p)


def test_the_mean_is_over_runs_and_the_spread_over_seeds_and_folds_apart():
    results = simulated_results(["meta"], seeds=3, folds=2)
    score = evaluated(results).arms["meta"].auc["total"]
    values = np.array([class_auc(r.labels, r.probabilities.astype(float)).mean() for r in results]).reshape(3, 2)
    assert score.value == pytest.approx(values.mean())
    assert [run.value for run in score.runs] == pytest.approx(values.ravel())
    assert score.seeds.sd == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert score.folds.sd == pytest.approx(values.mean(axis=0).std(ddof=1))


def test_disjoint_folds_narrow_the_interval_and_more_seeds_do_not():
    interval = Interval(0.7, 0.6, 0.78)
    folds = pooled({(0, fold): interval for fold in range(4)})
    assert (folds.value, folds.low, folds.high) == pytest.approx((0.7, 0.7 - 0.1 / 2, 0.7 + 0.08 / 2))
    seeds = pooled({(seed, 0): interval for seed in range(4)})
    assert (seeds.value, seeds.low, seeds.high) == pytest.approx((0.7, 0.6, 0.78))
    both = pooled({(seed, fold): interval for seed in range(3) for fold in range(4)})
    assert (both.value, both.low, both.high) == pytest.approx((folds.value, folds.low, folds.high))


def test_the_pooled_interval_of_disjoint_folds_is_that_of_their_mean():
    """Against normal errors, whose interval of the mean of two is known."""
    errors = np.array([0.02, 0.05])
    intervals = {(0, i): Interval(0.8, 0.8 - 1.96 * e, 0.8 + 1.96 * e) for i, e in enumerate(errors)}
    draws = np.random.default_rng(0).normal(0.8, errors, (100_000, 2)).mean(axis=1)
    mean = pooled(intervals)
    assert (mean.low, mean.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=5e-4)


# Differences


def test_differences_over_seeds_are_scipys_paired_t_and_over_splits_nadeau_and_bengios():
    results = simulated_results(["meta", "cxr-cml"], seeds=5)
    difference = compared(evaluated(results), "cxr-cml", "meta").auc["total"]
    auc = {
        arm: np.array([class_auc(r.labels, r.probabilities.astype(float)).mean() for r in results if r.arm == arm])
        for arm in ("meta", "cxr-cml")
    }
    expected = stats.ttest_rel(auc["cxr-cml"], auc["meta"])
    d = auc["cxr-cml"] - auc["meta"]
    assert difference.value == pytest.approx(d.mean())
    assert difference.seeds.p == pytest.approx(expected.pvalue)
    assert difference.seeds.wins == (d > 0).sum()
    t = d.mean() / (d.std(ddof=1) * np.sqrt(1 / 5 + 1 / 4))  # the test part is a quarter of the training part
    assert difference.splits.p == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert difference.verdict.test == "splits"
    assert difference.verdict.p > difference.seeds.p


def test_seeds_that_share_a_split_are_no_new_splits():
    results = [replace(r, seed=seed) for seed in range(4) for r in simulated_results(["meta", "cxr-cml"])]
    rng = np.random.default_rng(1)
    results = [replace(r, probabilities=r.probabilities + rng.normal(0, 0.01, r.labels.shape)) for r in results]
    difference = compared(evaluated(results), "cxr-cml", "meta").auc["total"]
    assert difference.splits.n == 1
    assert (difference.seeds.n, difference.verdict.test) == (4, "seeds")


def test_equal_arms_differ_by_nothing():
    results = [replace(simulated_result("meta", fold=f), arm=arm) for f in range(3) for arm in ("meta", "cxr-cml")]
    metrics = evaluated(results)
    for difference in compared(metrics, "cxr-cml", "meta").auc.values():
        assert difference.value == 0
        assert difference.seeds.wins == 0
        assert {difference.verdict.p, difference.patients.p} == {1.0}
    assert {d.p for d in compared(metrics, "cxr-cml", "meta").classes.values()} == {1.0}


def test_differences_of_findings_are_delongs():
    results = simulated_results(["meta", "cxr-cml"])
    classes = compared(evaluated(results), "cxr-cml", "meta").classes
    scores = {r.arm: r.probabilities.astype(float) for r in results}
    for i, name in enumerate(NAMES):
        expected = delong_test(results[0].labels[:, i], scores["cxr-cml"][:, i], scores["meta"][:, i])
        assert (classes[name].value, classes[name].p) == pytest.approx((expected.difference, expected.p))
        half = stats.norm.ppf(0.975) * expected.standard_error
        assert classes[name].high - classes[name].value == pytest.approx(half)


def test_every_arm_is_compared_with_meta_and_turning_a_pair_turns_the_sign():
    metrics = evaluated(simulated_results(QUALITY))
    assert metrics.reference == "meta"
    assert {c.a for c in metrics.comparisons if c.b == "meta"} == set(QUALITY) - {"meta"}
    there, back = (compared(metrics, *pair).auc["total"] for pair in (("start", "meta"), ("meta", "start")))
    assert there.value == -back.value
    assert there.verdict.low == pytest.approx(-back.verdict.high)


# What may be missing


def test_a_missing_arm_leaves_the_differences_to_the_runs_that_have_both():
    results = simulated_results(["meta", "cxr-cml"], seeds=4)
    results = [r for r in results if (r.arm, r.seed) != ("cxr-cml", 2)]
    metrics = evaluated(results)
    assert (metrics.arms["meta"].n_runs, metrics.arms["cxr-cml"].n_runs) == (4, 3)
    difference = compared(metrics, "cxr-cml", "meta").auc["total"]
    assert [run.seed for run in difference.runs] == [0, 1, 3]


def test_arms_without_a_common_run_have_no_difference():
    metrics = evaluated([simulated_result("meta", seed=0), simulated_result("cxr-cml", seed=1)])
    assert compared(metrics, "cxr-cml", "meta").auc == {"total": None, "base": None, "rare": None}


def test_a_finding_that_is_undefined_in_a_fold_is_averaged_over_the_others():
    results = simulated_results(["meta", "cxr-cml"], folds=3)
    for r in results:
        r.labels[:, 3] = r.labels[:, 3] & (r.fold == 1)  # "rare two" is there in fold 1 only
        r.labels[:, 2] = False
    metrics = evaluated(results)
    rare = metrics.arms["meta"].auc["rare"]
    assert [run.n_defined for run in rare.runs] == [0, 1, 0]
    assert [math.isnan(run.value) for run in rare.runs] == [True, False, True]
    assert rare.value == rare.runs[1].value
    assert [run.fold for run in compared(metrics, "cxr-cml", "meta").auc["rare"].runs] == [1]
    assert metrics.arms["meta"].classes["rare one"] is None
    assert metrics.arms["meta"].classes["rare two"] is not None


def test_without_rare_findings_that_group_is_empty():
    metrics = evaluated(simulated_results(["meta", "cxr-cml"]), rare=set())
    assert math.isnan(metrics.arms["meta"].auc["rare"].value)
    assert compared(metrics, "cxr-cml", "meta").auc["rare"] is None
    assert metrics.arms["meta"].auc["base"].value == metrics.arms["meta"].auc["total"].value


def test_the_starting_point_alone_has_scores_and_nothing_to_compare():
    metrics = evaluated(simulated_results(["start"], folds=2))
    assert metrics.reference is None
    assert metrics.comparisons == []
    assert metrics.arms["start"].cost == {}
    assert 0 < metrics.arms["start"].auc["total"].value < 1


def test_cost_is_compared_within_the_run():
    cost = evaluated(simulated_results(["start", "meta", "cxr-cml"], seeds=2)).arms["cxr-cml"].cost
    assert cost["seconds_per_step"].ratio.value == 2
    assert set(cost) == {"seconds_per_step"}


def test_the_cohort_table_counts_positives_and_orders_by_frequency():
    results = simulated_results(["meta"], folds=2)
    findings = evaluated(results).cohort.findings
    counts = np.mean([r.labels.sum(axis=0) for r in results], axis=0)
    assert {f.name: f.test for f in findings} == pytest.approx(dict(zip(NAMES, counts)))
    assert [f.train for f in findings] == sorted((f.train for f in findings), reverse=True)
    assert {f.name for f in findings if f.rare} == RARE


def test_what_is_left_without_the_common_axis():
    """The simulated results are upside down without it."""
    metrics = evaluated(simulated_results(["meta", "cxr-cml"], seeds=2))
    for arm in metrics.arms.values():
        for group in ("total", "base", "rare"):
            assert arm.without_axis[group] == pytest.approx(1 - arm.auc[group].value)


def test_an_arm_is_compared_with_those_that_it_names():
    arms = ["few-5", "few-5-clusters", "few-5-centroid", "few-20"]
    pairs = {(c.a, c.b) for c in evaluated(simulated_results(arms)).comparisons}
    assert {("few-5-clusters", "few-5"), ("few-5-clusters", "few-5-centroid"), ("few-5-centroid", "few-5")} <= pairs
    assert ("few-20", "few-5-clusters") not in pairs


# Bad input


@pytest.mark.parametrize(
    ("results", "rare", "message"),
    [
        ([], RARE, "results: none given"),
        (simulated_results(["meta"]) * 2, RARE, "is there twice"),
        (simulated_results(["meta"]), {"gout"}, "rare: .*gout"),
        ([simulated_result("meta"), simulated_result("cxr-cml", n_patients=30)], RARE, "tested on other images"),
        (
            [simulated_result("meta"), replace(simulated_result("meta", fold=1), label_names=NAMES[::-1])],
            RARE,
            "has findings",
        ),
    ],
)
def test_results_that_do_not_belong_together_are_refused(results, rare, message):
    with pytest.raises(ValueError, match=message):
        evaluate(results, rare=rare)
