"""The scikit-learn estimator: scikit-learn's own checks, its tools around it, and `GaussianMixture` beside it."""

import inspect
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_clustering, parametrize_with_checks

from tmixture import Prior, StudentTMixture
from tmixture.sklearn import StudentTMixtureClusterer

from .helpers import IN_SCIKIT_LEARN, STRUCTURES, of


def blobs(n=600, d=3, K=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=n)
    return rng.normal(size=(K, d))[labels] * 8 + rng.normal(size=(n, d)), labels


def no_exact_weights(estimator):
    """With more than one component, few rows may start from another place than rows with weights.

    How much a component of very few rows is regularised at the start depends on the number of rows, because it must not
    depend on the unit of the weights; scikit-learn's check has 12 rows in 30 dimensions. Where there are enough rows
    the fits are the same: `test_integer_weights_are_repeated_rows`. (scikit-learn's KMeans is excused likewise.)
    """
    if estimator.n_components == 1:
        return {}
    return {"check_sample_weight_equivalence_on_dense_data": "12 rows are too few for 2 components in 30 dimensions"}


@pytest.mark.slow
@parametrize_with_checks(
    [
        StudentTMixtureClusterer(),
        StudentTMixtureClusterer(covariance_type="tied"),
        StudentTMixtureClusterer(n_components=2, learn_dof="component"),
    ],
    expected_failed_checks=no_exact_weights,
)
def test_passes_the_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many checks fit nonsense
        check(estimator)


@pytest.mark.parametrize("readonly_memmap", [False, True])
def test_passes_the_checks_of_clusterers(readonly_memmap):
    check_clustering("StudentTMixtureClusterer", StudentTMixtureClusterer(3), readonly_memmap=readonly_memmap)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_integer_weights_are_repeated_rows_in_any_order(structure):
    X, _ = blobs()
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 4, size=len(X))
    order = rng.permutation(len(X))
    settings = dict(n_components=3, **of(structure), learn_dof="component", random_state=0)
    weighted = StudentTMixtureClusterer(**settings).fit(X[order], sample_weight=weight[order])
    repeated = StudentTMixtureClusterer(**settings).fit(X.repeat(weight, axis=0))
    for name in ("weights_", "means_", "scales_", "dof_", "lower_bound_"):
        rtol = 1e-4 if name == "dof_" else 1e-6  # a large ν hardly shows in the likelihood, and magnifies rounding
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=rtol, atol=1e-8)
    np.testing.assert_array_equal(weighted.labels_[order.argsort()][weight > 0], weighted.predict(X[weight > 0]))


@pytest.mark.parametrize("structure", IN_SCIKIT_LEARN)
def test_at_infinite_dof_it_is_gaussian_mixture(structure):
    X, _ = blobs()
    start = X[:3] + np.arange(3.0)[:, None]
    reference = GaussianMixture(3, covariance_type=structure, means_init=start, tol=1e-12, max_iter=500, reg_covar=0)
    reference.fit(X)
    ours = StudentTMixtureClusterer(
        3, dof=np.inf, **of(structure), init=reference.means_, tol=1e-14, max_iter=500, reg_covar=0
    ).fit(X)
    assert ours.lower_bound_ == pytest.approx(reference.lower_bound_, rel=1e-9)
    np.testing.assert_allclose(ours.weights_, reference.weights_, rtol=1e-5)
    np.testing.assert_allclose(ours.means_, reference.means_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.score_samples(X), reference.score_samples(X), rtol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(X), reference.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(ours.labels_, reference.predict(X))
    for name in ("covariances_", "precisions_", "precisions_cholesky_"):  # in its shapes
        np.testing.assert_allclose(getattr(ours, name), getattr(reference, name), rtol=1e-4, atol=1e-5, err_msg=name)
    assert ours.score(X) == pytest.approx(reference.score(X))
    assert ours.bic(X) == pytest.approx(reference.bic(X))  # so the free parameters are counted alike
    assert ours.aic(X) == pytest.approx(reference.aic(X))


def test_attributes_are_those_of_the_mixture():
    X, truth = blobs()
    estimator = StudentTMixtureClusterer(3, learn_dof="shared", covariance_type="full", random_state=0)
    labels = estimator.fit_predict(X)
    assert adjusted_rand_score(labels, truth) == 1
    np.testing.assert_array_equal(labels, estimator.predict(X))
    np.testing.assert_allclose(
        estimator.covariances_,
        estimator.scales_ * (estimator.dof_ / (estimator.dof_ - 2))[:, None, None],
        rtol=1e-12,
    )
    mixture = estimator.mixture_
    assert isinstance(mixture, StudentTMixture)
    np.testing.assert_array_equal(estimator.outlier_weights(X), mixture.outlier_weights(torch.from_numpy(X)).numpy())
    for name in ("weights", "means", "scales", "dof", "covariances"):
        np.testing.assert_allclose(getattr(estimator, name + "_"), getattr(mixture, name).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_data_is_kept(dtype):
    X = blobs()[0].astype(dtype)
    estimator = StudentTMixtureClusterer(3, random_state=0).fit(X)
    for values in (estimator.means_, estimator.predict_proba(X), estimator.score_samples(X), estimator.sample(3)[0]):
        assert values.dtype == dtype


def test_chunks_do_not_change_the_answers():
    X, _ = blobs(n=700)
    whole, chunked = (StudentTMixtureClusterer(3, random_state=0, chunk_size=size).fit(X) for size in (None, 64))
    np.testing.assert_allclose(whole.means_, chunked.means_, rtol=1e-10)
    np.testing.assert_allclose(whole.predict_proba(X), chunked.predict_proba(X), atol=1e-10)
    np.testing.assert_allclose(whole.score_samples(X), chunked.score_samples(X), rtol=1e-10)


def test_random_state_decides():
    X = np.random.default_rng(0).normal(size=(300, 2))
    fits = [StudentTMixtureClusterer(5, tol=1e-3, random_state=seed).fit(X) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].means_, fits[1].means_)
    assert not np.allclose(fits[0].means_, fits[2].means_)
    np.testing.assert_array_equal(fits[0].sample(10)[0], fits[1].sample(10)[0])


def test_warm_start_goes_on():
    X, _ = blobs()
    X = X / 6  # overlapping, so that it takes some time
    estimator = StudentTMixtureClusterer(3, max_iter=3, tol=0, warm_start=True, random_state=0)
    bounds = []
    for _ in range(4):
        with pytest.warns(ConvergenceWarning, match="max_iter=3"):
            bounds.append(estimator.fit(X).lower_bound_)
    with pytest.warns(ConvergenceWarning):
        straight = StudentTMixtureClusterer(3, max_iter=12, tol=0, random_state=0).fit(X)
    assert bounds == sorted(bounds)
    np.testing.assert_allclose(estimator.means_, straight.means_, rtol=1e-9)


@pytest.mark.parametrize("structure", IN_SCIKIT_LEARN)
def test_starts_from_given_weights_and_precisions_as_gaussian_mixture_does(structure):
    X, _ = blobs()
    rng = np.random.default_rng(3)
    weights, means = np.array([0.2, 0.5, 0.3]), X[:3] + np.arange(3.0)[:, None]
    matrices = np.linalg.inv([np.cov(rng.normal(size=(20, 3)).T) for _ in range(3)])
    variances = matrices.diagonal(axis1=1, axis2=2)
    precisions = {
        "full": matrices,
        "tied": matrices[0],
        "diag": variances,
        "spherical": variances[:, 0],
        "tied_diag": variances[0],
        "tied_spherical": variances[0, 0],
    }[structure]
    given = dict(weights_init=weights, precisions_init=precisions, max_iter=3, tol=0, reg_covar=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reference = GaussianMixture(3, covariance_type=structure, means_init=means, **given).fit(X)
        ours = StudentTMixtureClusterer(3, dof=np.inf, **of(structure), init=means, **given).fit(X)
    for name in ("weights_", "means_", "covariances_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(reference, name), rtol=1e-6, err_msg=name)


def test_given_starts_are_checked():
    X, _ = blobs()
    with pytest.raises(ValueError, match=r"precisions_init must have shape \(3, 3\) for covariance_type='tied', got"):
        StudentTMixtureClusterer(2, covariance_type="tied", precisions_init=np.ones((2, 3, 3))).fit(X)
    with pytest.raises(ValueError, match="precisions_init must be positive and finite"):
        StudentTMixtureClusterer(2, precisions_init=np.zeros((2, 3))).fit(X)
    slanted = np.eye(3)[None].repeat(2, 0) + np.eye(3, k=1) / 2
    with pytest.raises(ValueError, match="precisions_init must be symmetric, but that of component 0 is not"):
        StudentTMixtureClusterer(2, covariance_type="full", precisions_init=slanted).fit(X)
    with pytest.raises(ValueError, match="weights must be 2 numbers"):
        StudentTMixtureClusterer(2, weights_init=[1, 2, 3]).fit(X)


def test_warm_start_takes_a_changed_dof_and_refuses_a_changed_shape():
    X, _ = blobs()
    estimator = StudentTMixtureClusterer(3, warm_start=True, random_state=0).fit(X)
    estimator.set_params(dof=30.0).fit(X)
    np.testing.assert_array_equal(estimator.dof_, 30.0)
    before = estimator.means_
    with pytest.raises(ValueError, match="goes on from a fit with n_components=3, but it is 4 now"):
        estimator.set_params(n_components=4).fit(X)
    np.testing.assert_array_equal(estimator.means_, before)


def test_no_iterations_keep_the_start():
    X, _ = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator = StudentTMixtureClusterer(3, init=X[:3], max_iter=0).fit(X)
    assert estimator.n_iter_ == 0
    assert not estimator.converged_
    np.testing.assert_allclose(estimator.means_, X[:3])


def test_scores_of_weighted_rows_are_those_of_repeated_rows():
    X, _ = blobs()
    weight = np.random.default_rng(1).integers(0, 4, size=len(X))
    estimator = StudentTMixtureClusterer(3, random_state=0).fit(X)
    assert estimator.score(X, sample_weight=weight) == pytest.approx(estimator.score(X.repeat(weight, axis=0)))
    assert estimator.lower_bounds_[-1] == estimator.lower_bound_
    for question in ("score", "bic", "aic", "predict", "score_samples", "predict_proba", "outlier_weights"):
        with pytest.raises(NotFittedError):
            getattr(StudentTMixtureClusterer(), question)(X)


def test_heavy_tails_have_no_precision():
    X, _ = blobs()
    estimator = StudentTMixtureClusterer(3, dof=[1.0, 4.0, 8.0], covariance_type="tied", random_state=0).fit(X)
    assert np.isinf(estimator.covariances_[0]).any()
    full = StudentTMixtureClusterer(2, dof=1.5, covariance_type="full", precisions_init=np.eye(3)[None].repeat(2, 0))
    assert np.isposinf(full.set_params(max_iter=0).fit(X).covariances_).all()
    np.testing.assert_array_equal(estimator.precisions_[0], 0)
    for k in (1, 2):
        np.testing.assert_allclose(estimator.precisions_[k] @ estimator.covariances_[k], np.eye(3), atol=1e-9)


def test_candidates_are_passed_on():
    X, truth = blobs()
    estimator = StudentTMixtureClusterer(3, max_candidates=2, random_state=0).fit(X)
    assert estimator.mixture_.disagreement_ == 0
    assert adjusted_rand_score(estimator.labels_, truth) == 1
    with pytest.raises(ValueError, match="max_candidates"):
        StudentTMixtureClusterer(3, max_candidates=4).fit(X)


def test_pipeline_grid_search_clone_and_pickle():
    X, truth = blobs()
    pipeline = make_pipeline(StandardScaler(), StudentTMixtureClusterer(random_state=0, covariance_type="full"))
    search = GridSearchCV(pipeline, {"studenttmixtureclusterer__n_components": [1, 3]}, cv=3).fit(X)
    assert search.best_params_ == {"studenttmixtureclusterer__n_components": 3}
    assert adjusted_rand_score(search.predict(X), truth) == 1
    fitted = search.best_estimator_[-1]
    with pytest.raises(NotFittedError):
        clone(fitted).predict(X)
    restored = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(restored.score_samples(X), search.best_estimator_.score_samples(X))


def test_sample_has_the_moments_of_the_mixture():
    X, _ = blobs()
    estimator = StudentTMixtureClusterer(3, dof=12.0, covariance_type="full", random_state=0).fit(X)
    x, component = estimator.sample(40_000)
    for k in range(3):
        assert (component == k).mean() == pytest.approx(estimator.weights_[k], abs=0.01)
        np.testing.assert_allclose(x[component == k].mean(0), estimator.means_[k], atol=0.05)
        np.testing.assert_allclose(np.cov(x[component == k].T), estimator.covariances_[k], atol=0.08)


def test_nothing_is_fitted_after_an_error():
    estimator = StudentTMixtureClusterer(n_components=30)
    with pytest.raises(ValueError, match="n_components=30"):
        estimator.fit(blobs(n=20)[0])
    with pytest.raises(NotFittedError):
        estimator.means_  # noqa: B018
    with pytest.raises(ValueError, match="covariance_type must be one of"):
        StudentTMixtureClusterer(covariance_type="round").fit(blobs()[0])


def test_the_library_does_not_need_scikit_learn():
    code = "import sys; import tmixture; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("structure", ["tied_diag", "tied_spherical"])
@pytest.mark.parametrize("dof", [5.0, [3.0, 4.0, 5.0]])
def test_shapes_of_one_matrix_for_all(structure, dof):
    X, _ = blobs()
    estimator = StudentTMixtureClusterer(3, covariance_type=structure, dof=dof, random_state=0).fit(X)
    shape = (X.shape[1],) if structure == "tied_diag" else ()
    assert estimator.scales_.shape == shape
    assert estimator.covariances_.shape == (shape if dof == 5.0 else (3, *shape))
    again = StudentTMixtureClusterer(
        3, covariance_type=structure, dof=dof, random_state=0, precisions_init=1 / estimator.scales_, max_iter=0
    )
    np.testing.assert_allclose(again.fit(X).scales_, estimator.scales_)
    with pytest.raises(ValueError, match="precisions_init must have shape"):
        again.set_params(precisions_init=np.ones(7)).fit(X)


def test_a_prior_and_a_background_are_passed_on():
    X, _ = blobs()
    far = np.concatenate([X, X.mean(0) + 30 * np.random.default_rng(0).normal(size=(30, X.shape[1]))])
    estimator = StudentTMixtureClusterer(4, prior=Prior(scale_rows=2.0), background=True, random_state=0)
    estimator = clone(estimator).fit(far)
    assert (estimator.labels_[-30:] == -1).mean() > 0.8
    assert (estimator.labels_[:-30] == -1).mean() < 0.1
    assert estimator.mixture_.prior == Prior(scale_rows=2.0)
    with pytest.raises(ValueError, match="background=True, but it is False now"):
        estimator.set_params(warm_start=True, background=False).fit(far)


def test_responsibilities_are_features_of_a_pipeline():
    X, labels = blobs()
    pipeline = make_pipeline(StudentTMixtureClusterer(3, random_state=0), LogisticRegression()).fit(X, labels)
    assert pipeline.score(X, labels) > 0.9
    mixture = pipeline[0]
    np.testing.assert_array_equal(mixture.transform(X), mixture.predict_proba(X))
    assert mixture.get_feature_names_out()[2] == "studenttmixtureclusterer2"


def test_missing_values_are_taken_if_it_is_said():
    X, _ = blobs()
    X[::3, 0] = np.nan
    estimator = StudentTMixtureClusterer(3, random_state=0)
    with pytest.raises(ValueError, match="contains NaN"):
        estimator.fit(X)
    estimator.set_params(allow_missing=True).fit(X)
    assert get_tags(estimator).input_tags.allow_nan
    imputed = estimator.impute(X)
    assert np.isfinite(imputed).all()
    assert (imputed[1::3] == X[1::3]).all()
    assert estimator.predict(X).tolist() == estimator.labels_.tolist()


def test_settings_are_those_of_the_mixture_with_the_same_defaults():
    mixture = inspect.signature(StudentTMixture).parameters
    estimator = inspect.signature(StudentTMixtureClusterer).parameters
    of_torch = {"n_features", "step_size", "allow_tf32", "distributed", "generator", "dtype"}
    of_torch |= {"component_labels", "anchor_rows", "frozen"}  # scikit-learn's mixtures know no labels
    own = {"random_state", "weights_init", "precisions_init"}
    assert set(estimator) == set(mixture) - of_torch | own
    for name in set(estimator) - {"n_components"} - own:
        assert estimator[name].default == mixture[name].default, name
