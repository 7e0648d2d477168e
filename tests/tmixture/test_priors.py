"""Priors on weights, means and scales: closed forms, scipy's densities, and the objective that EM raises."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from tmixture import Prior, StudentTMixture

from . import naive
from .helpers import CLOSED_FORM, STRUCTURES, TIED, assert_same_parameters, from_model, of, parameters

INF = float("inf")
MEAN = [0.5, -1.0, 2.0]
SCALE = [[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]]
PRIOR = Prior(weight_rows=2.0, mean_rows=7.0, scale_rows=9.0, mean=MEAN, scale=SCALE)


def rows(n=60, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5]) + 1


def log_prior(model, prior, structure):
    """Of `Prior`'s docstring, by loops."""
    mean, scale, total = np.array(prior.mean), np.array(prior.scale), 0.0
    for weight, mu, sigma in zip(model.weights, model.means, model.scales):
        total += prior.weight_rows * math.log(weight)
        total -= prior.mean_rows * (mu - mean) @ np.linalg.solve(sigma, mu - mean) / 2
        total -= prior.scale_rows * (np.linalg.slogdet(sigma)[1] + np.trace(np.linalg.solve(sigma, scale))) / 2
    return total


def objective(mixture, x, prior, structure):
    """The mean log-likelihood and the logarithm of the prior, over the rows, in loops."""
    model = naive.Model(**parameters(mixture))
    return (naive.log_likelihood(x.numpy(), model) + log_prior(model, prior, structure)) / len(x)


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_one_gaussian_is_the_mode_of_the_normal_inverse_wishart(structure):
    x = rows()
    n, m = len(x), torch.tensor(MEAN, dtype=torch.float64)
    mixture = StudentTMixture(
        1, 3, dof=INF, **of(structure), prior=PRIOR, reg_covar=0, tol=1e-14, max_iter=500, dtype=torch.float64
    ).fit(x)
    mean = (x.sum(0) + 7 * m) / (n + 7)
    deviation = x.mean(0) - m
    scatter = (x - x.mean(0)).T @ (x - x.mean(0)) + 7 * n / (7 + n) * torch.outer(deviation, deviation)
    covariance = (scatter + 9 * torch.tensor(SCALE, dtype=torch.float64)) / (n + 9)
    expected = naive.constrained(covariance.numpy()[None], np.ones(1), structure)
    torch.testing.assert_close(mixture.means[0], mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixture.scales.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_one_gaussian_maximises_the_posterior_that_scipy_knows():
    """With Wishart's degrees of freedom scale_rows − d − 2: a normal with precision in rows has |Σ|^(−½) of its own."""
    x, wishart = rows(), stats.invwishart(df=9 - 3 - 2, scale=9 * np.array(SCALE))

    def posterior(mean, covariance):
        normal = stats.multivariate_normal(MEAN, covariance / 7).logpdf(mean)
        return stats.multivariate_normal(mean, covariance).logpdf(x.numpy()).sum() + normal + wishart.logpdf(covariance)

    prior = Prior(mean_rows=7, scale_rows=9, mean=MEAN, scale=SCALE)
    mixture = StudentTMixture(
        1, 3, dof=INF, covariance_type="full", prior=prior, reg_covar=0, tol=1e-14, max_iter=500, dtype=torch.float64
    ).fit(x)
    mean, covariance = mixture.means[0].numpy(), mixture.scales[0].numpy()
    top, rng = posterior(mean, covariance), np.random.default_rng(0)
    for _ in range(50):
        turn = np.eye(3) + 1e-3 * rng.normal(size=(3, 3))
        assert posterior(mean + 1e-3 * rng.normal(size=3), covariance) < top
        assert posterior(mean, turn @ covariance @ turn.T) < top


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("learn_dof", "scale_update"), [(False, "px"), ("component", "px"), ("shared", "classic")])
def test_history_is_the_log_posterior_and_rises(structure, learn_dof, scale_update):
    x, start = naive.heavy_tailed(d=3, structure=structure)
    x = torch.as_tensor(x)
    settings = dict(prior=PRIOR, learn_dof=learn_dof, scale_update=scale_update, max_iter=40)
    mixture = from_model(start, structure, **settings).fit(x)
    assert np.diff(mixture.history_).min() >= -1e-9
    assert mixture.history_[-1] == pytest.approx(objective(mixture, x, PRIOR, structure), abs=1e-8)


def test_it_is_the_default_prior_of_mclust():
    """EM with the M-step of Fraley & Raftery (2007, Section 3 and Table 1), κ = 0.01 and ν = d + 2, in loops."""
    x = np.loadtxt(Path(__file__).parents[1] / "data" / "faithful.csv", delimiter=",", skiprows=1)
    (n, d), K = x.shape, 3
    mean, kappa, nu = x.mean(0), 0.01, d + 2
    scale = np.cov(x.T) / K ** (2 / d)
    weights, means = np.full(K, 1 / K), x[[0, 1, 90]].copy()
    covariances = np.repeat(np.cov(x.T)[None], K, axis=0)
    start = naive.Model(weights, means, covariances, np.full(K, INF))
    for _ in range(200):
        densities = [stats.multivariate_normal(means[k], covariances[k]).logpdf(x) for k in range(K)]
        joint = np.log(weights) + np.stack(densities, axis=1)
        r = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        rows = r.sum(0)
        weights = rows / n
        for k in range(K):
            centre = r[:, k] @ x / rows[k]
            within = (r[:, k, None] * (x - centre)).T @ (x - centre)
            off = np.outer(centre - mean, centre - mean)
            means[k] = (rows[k] * centre + kappa * mean) / (rows[k] + kappa)
            pull = kappa * rows[k] / (kappa + rows[k])
            covariances[k] = (scale + pull * off + within) / (nu + rows[k] + d + 2)
    rows_of_scale = nu + d + 2
    prior = Prior(mean_rows=kappa, scale_rows=rows_of_scale, mean=mean, scale=scale / rows_of_scale)
    mixture = from_model(start, "full", prior=prior, max_iter=200).fit(torch.as_tensor(x))
    expected = naive.Model(weights, means, covariances, np.full(K, INF))
    assert_same_parameters(mixture, expected, rtol=1e-6)


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_the_end_is_a_maximum(structure):
    """Of the log-posterior in loops: no step in weights, means or scales raises it."""
    x = torch.as_tensor(naive.draw(naive.random_model(2, 3, structure, dof=4.0), 80))
    mixture = StudentTMixture(
        2, 3, **of(structure), prior=PRIOR, reg_covar=0, tol=1e-13, max_iter=2000, generator=0, dtype=torch.float64
    ).fit(x)
    top, rng, end = objective(mixture, x, PRIOR, structure), np.random.default_rng(0), parameters(mixture)
    for _ in range(20):
        turn = np.exp(1e-3 * rng.normal(size=(2, 3)))
        if structure in ("spherical", *TIED):
            turn = np.broadcast_to(turn[:1, :1] if structure in TIED else turn[:, :1], (2, 3))
        moved = naive.Model(
            weights=(w := end["weights"] * np.exp(1e-3 * rng.normal(size=2))) / w.sum(),
            means=end["means"] + 1e-3 * rng.normal(size=(2, 3)),
            scales=turn[:, :, None] * end["scales"] * turn[:, None, :],
            dof=end["dof"],
        )
        assert (naive.log_likelihood(x.numpy(), moved) + log_prior(moved, PRIOR, structure)) / len(x) < top


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rows_of_a_prior_count_beside_those_of_the_data(structure):
    """Thirty times as many rows of the data are a thirtieth of the prior's; weights of all rows change nothing."""
    x = torch.as_tensor(naive.draw(naive.random_model(2, 3, structure, dof=4.0), 300))
    settings = dict(**of(structure), generator=0, dtype=torch.float64, max_iter=3000, tol=1e-13)
    repeated = StudentTMixture(2, 3, prior=PRIOR, **settings).fit(x.repeat(30, 1))
    weak = StudentTMixture(2, 3, prior=Prior(2 / 30, 7 / 30, 9 / 30, MEAN, SCALE), **settings)
    assert_same_parameters(repeated, weak.fit(x), rtol=1e-5)
    assert_same_parameters(repeated, weak.fit(x, torch.full((300,), 7.0)), rtol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_prior_of_many_rows_is_where_the_components_end(structure):
    prior = Prior(mean_rows=1e8, scale_rows=1e8, mean=MEAN, scale=[4.0, 4.0, 4.0])
    mixture = StudentTMixture(2, 3, **of(structure), prior=prior, generator=0, max_iter=300, tol=0).fit(rows())
    torch.testing.assert_close(mixture.means, torch.tensor([MEAN, MEAN]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixture.scales, 4 * torch.eye(3).expand(2, 3, 3), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_chunks_and_streams_keep_the_prior(structure):
    x = torch.as_tensor(naive.draw(naive.random_model(2, 3, structure, dof=4.0), 200))
    settings = dict(**of(structure), prior=PRIOR, generator=0, dtype=torch.float64, max_iter=20)
    one, other = (StudentTMixture(2, 3, chunk_size=size, **settings).fit(x) for size in (7, 1000))
    assert_same_parameters(one, other, rtol=1e-6)
    heavy = {**settings, "prior": Prior(mean_rows=1e9, mean=MEAN)}
    streamed = StudentTMixture(2, 3, **heavy)
    for batch in x.split(20):
        streamed.partial_fit(batch)
    torch.testing.assert_close(streamed.means, torch.tensor([MEAN, MEAN]).double(), rtol=1e-3, atol=1e-3)


def test_the_weights_are_those_of_a_dirichlet():
    x = torch.as_tensor(naive.draw(naive.random_model(3, 3, "diag", dof=4.0), 200))
    mixture = StudentTMixture(
        3, 3, prior=Prior(weight_rows=5), tol=1e-13, max_iter=2000, generator=0, dtype=torch.float64
    )
    share = mixture.fit(x)(x).sum(0)
    torch.testing.assert_close(mixture.weights, (share + 5) / (200 + 15), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("structure", ["diag", "full", "spherical"])
def test_components_vanish_until_those_are_left_that_the_data_has(structure):
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]], dtype=torch.float64)
    x = centres.repeat_interleave(200, 0) + torch.randn(600, 2, generator=torch.Generator().manual_seed(0)).double()
    rows_needed = 2 * {"diag": 4, "full": 5, "spherical": 3}[structure]
    settings = dict(covariance_type=structure, generator=0, max_iter=2000)
    mixture = StudentTMixture(12, 2, prior=Prior(weight_rows=-rows_needed), **settings).fit(x)
    assert int((mixture.weights > 1e-6).sum()) == 3
    assert mixture.n_reseeded_ == 0
    assert len(mixture.predict(x).unique()) == 3
    assert float(mixture.weights.sum()) == pytest.approx(1, abs=1e-5)


def test_never_do_all_components_vanish():
    mixture = StudentTMixture(4, 3, prior=Prior(weight_rows=-1e6), generator=0).fit(rows())
    assert mixture.weights.isfinite().all()
    assert float(mixture.weights.sum()) == pytest.approx(1, abs=1e-5)


def test_what_is_not_said_follows_from_the_data():
    """The means are drawn to that of the data, the scales to its variances over K^(2/d)."""
    x = rows(400)
    mixture = StudentTMixture(3, 3, prior=Prior(mean_rows=1e8, scale_rows=1e8), generator=0, max_iter=300, tol=0).fit(x)
    torch.testing.assert_close(mixture.means, x.mean(0).float().expand(3, -1), rtol=0, atol=2e-2)
    expected = (x.var(0, correction=0) / 3 ** (2 / 3)).diag().float().expand(3, -1, -1)
    torch.testing.assert_close(mixture.scales, expected, rtol=2e-2, atol=1e-2)


def test_a_prior_is_saved_and_marginalised(tmp_path):
    mixture = StudentTMixture(2, 3, prior=PRIOR, generator=0).fit(rows())
    mixture.save(tmp_path / "mixture")
    assert StudentTMixture.load(tmp_path / "mixture").prior == mixture.prior
    assert mixture.marginal([2, 0]).prior == Prior(2.0, 7.0, 9.0, [2.0, 0.5], [[0.5, 0.1], [0.1, 2.0]])
    plain = StudentTMixture(2, 3, prior=Prior(scale_rows=3, scale=torch.ones(3)), generator=0).fit(rows())
    assert plain.marginal([1]).prior == Prior(scale_rows=3, scale=[1.0])


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"mean_rows": 1}, "prior must be a tmixture.Prior"),
        (Prior(weight_rows=INF), "prior.weight_rows must be a finite number, got inf"),
        (Prior(mean_rows=-1), "prior.mean_rows must be a finite number that is not negative, got -1"),
        (Prior(scale_rows="3"), "prior.scale_rows must be a finite number that is not negative, got '3'"),
        (Prior(mean=[1.0, 2.0]), "prior.mean must be 3 finite numbers"),
        (Prior(scale=[1.0, 0.0, 1.0]), "prior.scale must be 3 positive variances"),
        (Prior(scale=[[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "symmetric positive definite"),
        (Prior(scale=torch.eye(2)), r"matrix \(3, 3\)"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(2, 3, prior=prior)
