"""Against numbers that nobody here made: scikit-learn at ν = ∞, scipy's fits and published log-likelihoods."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from tmixture import StudentTMixture

from . import naive
from .helpers import CLOSED_FORM, IN_SCIKIT_LEARN, from_model, of

INF = float("inf")


def scikit_learn_precisions(scales, structure):
    precisions = np.linalg.inv(scales)
    return {
        "full": precisions,
        "tied": precisions[0],
        "diag": np.diagonal(precisions, axis1=1, axis2=2),
        "spherical": precisions[:, 0, 0],
    }[structure]


@pytest.mark.parametrize("structure", IN_SCIKIT_LEARN)
def test_the_gaussian_mixture_is_that_of_scikit_learn(structure):
    truth = naive.random_model(3, 4, structure, dof=INF, spread=2.0)
    x = naive.draw(truth, 400)
    start = naive.random_model(3, 4, structure, dof=INF, seed=7)
    theirs = GaussianMixture(
        3,
        covariance_type=structure,
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=scikit_learn_precisions(start.scales, structure),
        max_iter=25,
        tol=0,
        reg_covar=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        theirs.fit(x)
    rows = torch.as_tensor(x)
    ours = from_model(start, structure, max_iter=25).fit(rows)
    np.testing.assert_allclose(ours.weights, theirs.weights_, rtol=1e-8)
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=1e-8, atol=1e-8)
    dense = {
        "full": lambda c: c,
        "tied": lambda c: np.repeat(c[None], 3, axis=0),
        "diag": lambda c: np.array([np.diag(row) for row in c]),
        "spherical": lambda c: c[:, None, None] * np.eye(4),
    }[structure](theirs.covariances_)
    np.testing.assert_allclose(ours.covariances, dense, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours.scales, dense, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(ours(rows), theirs.predict_proba(x), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(ours.log_prob(rows), theirs.score_samples(x), rtol=1e-8)
    assert ours.predict(x).tolist() == theirs.predict(x).tolist()
    assert ours.n_free_parameters == theirs._n_parameters()
    for criterion in ("score", "bic", "aic"):
        assert getattr(ours, criterion)(x) == pytest.approx(getattr(theirs, criterion)(x), rel=1e-9)
    entropy = stats.entropy(theirs.predict_proba(x), axis=1).sum()
    assert ours.icl(x) == pytest.approx(theirs.bic(x) + 2 * entropy, rel=1e-9)


@pytest.fixture(scope="module")
def faithful():
    path = Path(__file__).parent.parent / "data" / "faithful.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([[float(row["eruptions"]), float(row["waiting"])] for row in rows], dtype=torch.float64)


def fit_from_labels(x, labels, **settings):
    arguments = {"covariance_type": "full", "reg_covar": 0.0, "dtype": torch.float64, **settings}
    K = int(labels.max()) + 1
    return StudentTMixture(K, x.shape[1], **arguments).fit(x, responsibilities=labels)


def total(mixture, x):
    return mixture.score(x) * len(x)


@pytest.mark.parametrize(
    ("dof", "log_likelihood"),
    [
        (1.0, -1202.62768932),
        (3.0, -1146.76974991),
        (4.0, -1140.53300354),
        (5.0, -1137.16998561),
        (10.0, -1131.92474555),
        (30.0, -1130.25770249),
        (1e6, -1130.26394989),
        (INF, -1130.26396018),
    ],
)
@pytest.mark.parametrize("scale_update", ["px", "classic"])
def test_old_faithful_at_fixed_dof(faithful, dof, log_likelihood, scale_update):
    labels = (faithful[:, 0] > 3).long()
    mixture = fit_from_labels(faithful, labels, dof=dof, tol=1e-13, max_iter=1000, scale_update=scale_update)
    assert mixture.converged_
    assert total(mixture, faithful) == pytest.approx(log_likelihood, abs=2e-8)


@pytest.mark.parametrize("dof", [4.0, 150.0])
def test_old_faithful_with_a_shared_dof(faithful, dof):
    labels = (faithful[:, 0] > 3).long()
    mixture = fit_from_labels(faithful, labels, dof=dof, learn_dof="shared", tol=1e-11, max_iter=200)
    assert mixture.converged_
    assert total(mixture, faithful) == pytest.approx(-1130.17891847, abs=2e-8)
    np.testing.assert_allclose(mixture.dof, 59.75, atol=0.02)


@pytest.mark.parametrize("dof", [4.0, 50.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_large_dof_is_that_of_scipy(seed, dof):
    """EM alone takes more than a thousand steps to it."""
    x = stats.t.rvs(30, size=(5000, 1), random_state=seed)
    df, loc, scale = stats.t.fit(x[:, 0])
    mixture = StudentTMixture(1, 1, dof=dof, learn_dof="shared", tol=1e-9, dtype=torch.float64).fit(x)
    assert mixture.converged_
    found = float(mixture.score(x)) * len(x)
    assert found > stats.t.logpdf(x, df, loc, scale).sum() - 1e-3
    assert float(mixture.dof[0]) == pytest.approx(df, rel=0.01)


def test_old_faithful_with_a_dof_per_component(faithful):
    """The same optimum as EMMIXskew and teigen find, with ν capped at 200."""
    labels = (faithful[:, 0] <= 3).long()
    mixture = fit_from_labels(faithful, labels, dof=[200.0, 19.28], learn_dof="component", tol=0.0, max_iter=600)
    assert total(mixture, faithful) == pytest.approx(-1129.9602, abs=5e-5)
    np.testing.assert_allclose(mixture.dof, [200.0, 19.28], atol=0.01)


def test_iris_at_fixed_dof():
    iris = load_iris()
    x = torch.as_tensor(iris.data)
    mixture = fit_from_labels(x, torch.as_tensor(iris.target), dof=5.0, tol=1e-14, max_iter=1000)
    assert mixture.converged_
    assert total(mixture, x) == pytest.approx(-187.59558843, abs=2e-8)


def test_iris_with_a_dof_per_component():
    iris = load_iris()
    x = torch.as_tensor(iris.data)
    mixture = fit_from_labels(
        x, torch.as_tensor(iris.target), dof=[10.757, 200.0, 68.96], learn_dof="component", tol=0.0, max_iter=500
    )
    assert total(mixture, x) == pytest.approx(-178.98561703, abs=2e-8)
    np.testing.assert_allclose(mixture.dof, [10.757, 200.0, 68.96], rtol=5e-4)


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_one_univariate_component_is_the_fit_of_scipy(structure):
    x = stats.t(df=3.0, loc=5.0, scale=2.0).rvs(size=600, random_state=np.random.default_rng(1))
    dof, loc, scale = stats.t.fit(x, 3.0, loc=5.0, scale=2.0)
    mixture = StudentTMixture(
        1, 1, dof=10.0, learn_dof="shared", **of(structure), reg_covar=0.0, tol=1e-14, max_iter=1000,
        dtype=torch.float64, generator=0,
    ).fit(x[:, None])  # fmt: skip
    assert mixture.converged_
    # scipy's simplex search stops at about 1e-4.
    np.testing.assert_allclose(mixture.dof, dof, rtol=1e-3)
    np.testing.assert_allclose(mixture.means, loc, rtol=1e-4)
    np.testing.assert_allclose(mixture.scales, scale**2, rtol=1e-3)
    assert total(mixture, x[:, None]) >= stats.t(dof, loc, scale).logpdf(x).sum() - 1e-9


def test_covariances_are_those_of_the_marginal_distributions():
    model = naive.random_model(3, 3, "full", dof=(1.5, 4.0, INF))
    covariances = from_model(model, "full").covariances
    scales = np.sqrt(np.diagonal(model.scales, axis1=1, axis2=2))
    variances = [stats.t(1.5, 0, scales[0]).var(), stats.t(4, 0, scales[1]).var(), stats.norm(0, scales[2]).var()]
    np.testing.assert_allclose(covariances.diagonal(dim1=1, dim2=2), variances, rtol=1e-12)
    correlation = covariances[1].numpy() / np.outer(np.sqrt(variances[1]), np.sqrt(variances[1]))
    np.testing.assert_allclose(correlation, model.scales[1] / np.outer(scales[1], scales[1]), rtol=1e-12)
