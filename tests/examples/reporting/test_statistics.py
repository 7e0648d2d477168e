import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, roc_auc_score

from cxr.reporting.statistics import (
    MacroBootstrap,
    bootstrap_auc,
    class_auc,
    class_average_precision,
    delong_covariance,
    delong_test,
    macro,
    paired_t,
    summarize,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def wins(positive_scores, negative_scores):
    """Whether the positive's score is larger, ½ if equal: the O(m·n) kernel of the AUC."""
    difference = positive_scores[:, None] - negative_scores[None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def simulated_evaluation(rng, n_patients=80, n_classes=5, n_models=2):
    """Several images a patient; rounded scores, so that many are equal; the second model is the better one."""
    patients = rng.permutation(np.repeat(np.arange(n_patients) * 7, rng.integers(1, 6, n_patients)))
    labels = rng.random((len(patients), n_classes)) < np.geomspace(0.4, 0.03, n_classes)
    quality = np.linspace(0.3, 1.0, n_models)[:, None, None]
    scores = np.round(rng.normal(size=(n_models, *labels.shape)) + quality * labels, 1)
    return labels, scores, patients


# Per class and macro


def test_class_values_are_sklearns_and_nan_where_undefined(rng):
    labels, scores, _ = simulated_evaluation(rng)
    labels[:, 1], labels[:, 3] = False, True
    for ours, theirs in ((class_auc, roc_auc_score), (class_average_precision, average_precision_score)):
        values = ours(labels, scores[0])
        assert np.isnan(values[[1, 3]]).all()
        for i in (0, 2, 4):
            assert values[i] == pytest.approx(theirs(labels[:, i], scores[0][:, i]), abs=1e-12)


def test_macro_averages_the_defined_classes_and_says_how_many():
    groups = macro(np.array([0.9, 0.5, np.nan, 0.7]), np.array([False, False, True, True]))
    assert groups["total"].mean == pytest.approx(0.7)
    assert (groups["total"].n_defined, groups["total"].n_classes) == (3, 4)
    assert (groups["base"].mean, groups["base"].n_defined) == (pytest.approx(0.7), 2)
    assert (groups["rare"].mean, groups["rare"].n_defined, groups["rare"].n_classes) == (pytest.approx(0.7), 1, 2)
    assert np.isnan(macro(np.array([0.5, np.nan]), np.array([False, True]))["rare"].mean)


# DeLong


def test_delong_covariance_is_that_of_the_structural_components(rng):
    positive = rng.random(60) < 0.3
    scores = np.round(rng.normal(size=(3, 60)) + positive, 1)
    kernels = np.array([wins(s[positive], s[~positive]) for s in scores])
    m, n = kernels.shape[1:]
    by_positive, by_negative = kernels.mean(axis=2), kernels.mean(axis=1)
    auc, covariance = delong_covariance(positive, scores)
    np.testing.assert_allclose(auc, kernels.mean(axis=(1, 2)), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(by_positive) / m + np.cov(by_negative) / n, atol=1e-12)


def test_delong_error_is_that_of_a_bootstrap_of_independent_images(rng):
    positive = rng.random(400) < 0.25
    a = rng.normal(size=400) + positive
    b = 0.7 * a + rng.normal(size=400) + 0.2 * positive
    result = delong_test(positive, a, b)
    resampled = bootstrap_auc(
        positive[:, None], np.stack([a, b])[:, :, None], np.arange(400), n_resamples=2000, seed=1
    ).squeeze(2)
    assert result.standard_error == pytest.approx((resampled[0] - resampled[1]).std(), rel=0.08)
    assert result.difference == pytest.approx(roc_auc_score(positive, a) - roc_auc_score(positive, b), abs=1e-12)


def test_delong_p_is_uniform_when_the_models_are_equally_good(rng):
    positive = np.arange(150) < 50
    p = [delong_test(positive, *(rng.normal(size=(2, 150)) + positive)).p for _ in range(600)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_delong_of_a_model_with_itself_and_with_its_mirror(rng):
    positive = np.arange(40) < 15
    scores = rng.normal(size=40)
    assert delong_test(positive, scores, scores).p == 1.0
    perfect = positive.astype(float)
    assert delong_test(positive, perfect, -perfect).p == 0.0
    forth, back = delong_test(positive, scores, perfect), delong_test(positive, perfect, scores)
    assert forth.p == pytest.approx(back.p)
    assert forth.difference == -back.difference


def test_delong_needs_two_of_each():
    with pytest.raises(ValueError, match=r"positive: got 1 positive and 9 negative"):
        delong_covariance(np.arange(10) < 1, np.zeros((2, 10)))


# Bootstrap


def test_bootstrap_is_the_auc_of_the_resampled_patients_rows(rng):
    labels, scores, patients = simulated_evaluation(rng)
    resampled = bootstrap_auc(labels, scores, patients, n_resamples=100, seed=3)
    names = np.unique(patients)
    again = np.random.default_rng(3)
    draws = [d for n in (64, 36) for d in again.integers(len(names), size=(n, len(names)))]
    for r in range(100):
        rows = np.concatenate([np.flatnonzero(patients == names[d]) for d in draws[r]])
        for model in range(2):
            expected = class_auc(labels[rows], scores[model][rows])
            np.testing.assert_allclose(resampled[model, r], expected, atol=1e-12)
    assert not np.isnan(resampled[:, :, 0]).any()


def test_a_resample_without_positives_leaves_the_class_out_for_all_models(rng):
    labels, scores, patients = simulated_evaluation(rng)
    labels[:, 4] = patients == patients[0]
    resampled = bootstrap_auc(labels, scores, patients, n_resamples=500, seed=0)
    undefined = np.isnan(resampled[:, :, 4])
    assert (undefined[0] == undefined[1]).all()
    assert undefined[0].mean() == pytest.approx(np.exp(-1), abs=0.08)  # (1 − 1/n)^n: the patient is not drawn


def test_images_that_repeat_a_patient_do_not_shorten_the_interval(rng):
    labels, scores, _ = simulated_evaluation(rng)
    once = np.arange(len(labels))
    four = np.tile(once, 4)
    widths = []
    for rows, patients in ((once, once), (four, four), (four, np.arange(len(four)))):
        boot = MacroBootstrap(labels[rows], {"a": scores[0][rows]}, patients, np.arange(5) > 2, seed=0)
        interval = boot.interval("a")
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0])
    assert widths[2] < 0.65 * widths[0]  # what it would be if images counted as patients


def test_macro_interval_and_difference_are_of_the_resampled_macro_means(rng):
    labels, scores, patients = simulated_evaluation(rng)
    rare = np.arange(5) > 2
    boot = MacroBootstrap(labels, {"a": scores[0], "b": scores[1]}, patients, rare, n_resamples=300, seed=5)
    resampled = bootstrap_auc(labels, scores, patients, n_resamples=300, seed=5)
    for group, members in {"total": rare | True, "base": ~rare, "rare": rare}.items():
        means = np.nanmean(resampled[:, :, members], axis=2)
        points = [np.nanmean(class_auc(labels, s)[members]) for s in scores]
        interval = boot.interval("b", group, level=0.9)
        assert interval.value == pytest.approx(points[1])
        np.testing.assert_allclose([interval.low, interval.high], np.quantile(means[1], [0.05, 0.95]))
        difference = boot.difference("b", "a", group)
        assert difference.value == pytest.approx(points[1] - points[0])
        np.testing.assert_allclose([difference.low, difference.high], np.quantile(means[1] - means[0], [0.025, 0.975]))
        assert (difference.p < 0.05) == (difference.low > 0 or difference.high < 0)


def test_pairing_makes_the_interval_of_a_difference_of_like_models_short(rng):
    labels, scores, patients = simulated_evaluation(rng)
    like = scores[0] + rng.normal(scale=0.05, size=labels.shape)
    boot = MacroBootstrap(labels, {"a": scores[0], "like a": like}, patients, np.arange(5) > 2, seed=0)
    alone, difference = boot.interval("a"), boot.difference("a", "like a")
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)
    assert boot.difference("a", "a").p == 1.0


def test_the_95_percent_interval_covers_the_truth_about_as_often(rng):
    covered = []
    truth = scipy.stats.norm.cdf(1 / np.sqrt(2))  # P(positive > negative) for unit normals one apart
    for _ in range(150):
        labels = rng.random((150, 4)) < 0.3
        boot = MacroBootstrap(
            labels, {"a": rng.normal(size=(150, 4)) + labels}, np.arange(150), np.arange(4) > 2, n_resamples=200, seed=0
        )
        interval = boot.interval("a")
        covered.append(interval.low <= truth <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_a_group_without_defined_classes_has_nan_and_no_crash(rng):
    labels, scores, patients = simulated_evaluation(rng)
    labels[:, 4] = False
    boot = MacroBootstrap(labels, {"a": scores[0], "b": scores[1]}, patients, np.arange(5) == 4, n_resamples=50, seed=0)
    assert np.isnan([boot.interval("a", "rare").value, boot.interval("a", "rare").low]).all()
    assert np.isnan(boot.difference("a", "b", "rare").value)
    assert boot.interval("a", "total").value == pytest.approx(boot.interval("a", "base").value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros((2, 10, 3))}, r"scores: got shape \(10, 3\), need finite numbers .* \(10, 2\)"),
        ({"scores": np.full((2, 10, 2), np.nan)}, "need finite numbers"),
        ({"labels": np.zeros((10, 2))}, "labels: got float64"),
        ({"patients": np.zeros(9, dtype=int)}, r"patients: got shape \(9,\), need \(10,\)"),
    ],
)
def test_bootstrap_names_what_is_wrong(change, message):
    good = {"labels": np.arange(20).reshape(10, 2) > 9, "scores": np.zeros((2, 10, 2)), "patients": np.arange(10)}
    with pytest.raises(ValueError, match=message):
        bootstrap_auc(**(good | change), n_resamples=5, seed=0)


# Over seeds and folds


def test_paired_t_over_seeds_is_scipys(rng):
    a, b = rng.normal(size=(2, 10))
    ours, theirs = paired_t(a, b), scipy.stats.ttest_rel(a, b)
    assert (ours.t, ours.p) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (ours.wins, ours.n) == (int((a > b).sum()), 10)


def test_corrected_t_over_folds_is_nadeau_and_bengios():
    a, b = [0.71, 0.73, 0.70, 0.74, 0.72], [0.70, 0.70, 0.69, 0.70, 0.71]
    # Differences .01 .03 .01 .04 .01: mean .02, sum of squared deviations 8e-4, variance 2e-4 (4 degrees of freedom).
    # Of the mean of 5 folds: 2e-4 · (1/5 + 1/4) = 9e-5, so t = .02/√9e-5.
    result = paired_t(a, b, test_over_train=1 / 4)
    assert result.t == pytest.approx(0.02 / np.sqrt(9e-5))
    assert result.p == pytest.approx(2 * scipy.stats.t.sf(0.02 / np.sqrt(9e-5), 4))
    assert result.p > paired_t(a, b).p


def test_paired_t_keeps_its_level_on_folds_of_one_sample_only_when_corrected(rng):
    """Two useless models compared by 5-fold cross-validation of their mean on one sample of 50."""
    corrected, plain = [], []
    for _ in range(800):
        # The estimate on fold i carries an error of the training set, of which any two folds share most.
        differences = rng.normal(scale=0.5) + rng.normal(size=5)
        corrected.append(paired_t(differences, np.zeros(5), test_over_train=1 / 4).p < 0.05)
        plain.append(paired_t(differences, np.zeros(5)).p < 0.05)
    assert np.mean(plain) > 0.1
    assert np.mean(corrected) < 0.07


def test_summary_is_the_t_interval(rng):
    values = rng.normal(size=8)
    summary = summarize(values, level=0.9)
    expected = scipy.stats.t.interval(0.9, 7, values.mean(), scipy.stats.sem(values))
    assert (summary.low, summary.high) == pytest.approx(expected)
    assert (summary.value, summary.sd, summary.n) == (
        pytest.approx(values.mean()),
        pytest.approx(values.std(ddof=1)),
        8,
    )


def test_one_run_has_a_mean_and_no_spread():
    summary, difference = summarize([0.7]), paired_t([0.7], [0.6])
    assert summary.value == 0.7
    assert difference.value == pytest.approx(0.1)
    assert np.isnan([summary.sd, summary.low, difference.low, difference.p, difference.t]).all()


def test_two_runs_have_a_spread_and_no_interval():
    summary = summarize([0.7, 0.8])
    assert summary.sd == pytest.approx(0.1 / np.sqrt(2))
    assert np.isnan([summary.low, summary.high]).all()
    assert np.isfinite(summarize([0.7, 0.8, 0.9]).low)


def test_equal_differences_have_certain_answers():
    assert paired_t([0.5, 0.75], [0.5, 0.75]).p == 1.0
    assert paired_t([0.5, 0.75], [0.25, 0.5]).p == 0.0


def test_runs_must_match_and_be_finite():
    with pytest.raises(ValueError, match=r"b: got 2 run\(s\), need 3"):
        paired_t([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="values: got"):
        summarize([1.0, np.nan])
