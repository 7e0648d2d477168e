"""Mixtures of t-factor analyzers: against dense algebra, against "full", where rows are few, and on embeddings."""

import numpy as np
import pytest
import torch
from scipy import stats

from tmixture import StudentTMixture, em
from tmixture.data.chunks import Chunk
from tmixture.frozen import Frozen
from tmixture.maximization import Rules, maximization
from tmixture.parameters import Parameters
from tmixture.scales.lowrank import LowRankScale

RULES = Rules("px", False, (0.5, 200.0), torch.zeros((), dtype=torch.float64))


def analyzers(K, d, q, dof=5.0, spread=2.0, seed=0):
    """A mixture of t-factor analyzers, as a "full" mixture: its matrices are made here, by dense algebra."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(K, d, q, generator=generator, dtype=torch.float64) * torch.linspace(1.5, 0.7, q)
    noise = torch.rand(K, d, generator=generator, dtype=torch.float64) + 0.3
    means = spread * torch.randn(K, d, generator=generator, dtype=torch.float64)
    weights = torch.ones(K) / K
    return StudentTMixture.from_parameters(weights, means, loadings @ loadings.mT + torch.diag_embed(noise), dof=dof)


def scale_of_rank(K, d, q, seed=0):
    generator = torch.Generator().manual_seed(seed)
    whitening = torch.rand(K, d, generator=generator, dtype=torch.float64) + 0.5
    return LowRankScale(whitening, torch.randn(K, d, q, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("d", "q"), [(2, 1), (5, 4), (40, 7)])
def test_distances_and_determinants_are_those_of_the_dense_matrix(d, q):
    scale = scale_of_rank(3, d, q)
    rng = np.random.default_rng(0)
    x, means = rng.normal(size=(20, d)), rng.normal(size=(3, d))
    distances = scale.mahalanobis(scale.features(torch.as_tensor(x)), torch.as_tensor(means)).numpy()
    half_log_det = scale.half_log_det(d).numpy()
    noise, loadings = (1 / scale.whitening.square()).numpy(), scale.loadings.numpy()
    for k in range(3):
        dense = loadings[k] @ loadings[k].T + np.diag(noise[k])
        np.testing.assert_allclose(scale.dense(3, d)[k], dense, rtol=1e-12, atol=1e-12)
        log_prob = -distances[:, k] / 2 - half_log_det[k] - d / 2 * np.log(2 * np.pi)
        np.testing.assert_allclose(log_prob, stats.multivariate_normal(means[k], dense).logpdf(x), rtol=1e-10)
    white = torch.eye(d, dtype=torch.float64)
    rows = scale.correlate(white, torch.full((d,), 2))
    np.testing.assert_allclose(rows.mT @ rows, scale.dense(3, d)[2], rtol=1e-10, atol=1e-12)


def factor_analysis_step(scatter, n, alpha, loadings, noise):
    """One PX-EM step with dense matrices: regress x on its factors, absorb their covariance, divide by α."""
    q = loadings.shape[1]
    regression = loadings.T @ np.linalg.inv(loadings @ loadings.T + np.diag(noise))
    xf = scatter @ regression.T
    ff = regression @ scatter @ regression.T + n * (np.eye(q) - regression @ loadings)
    slope = xf @ np.linalg.inv(ff)
    residual = np.diag(scatter - slope @ xf.T)
    return (slope @ ff @ slope.T / n + np.diag(residual / n)) / alpha


@pytest.mark.parametrize("scale_update", ["px", "classic"])
def test_the_m_step_is_that_of_dense_factor_analysis(scale_update):
    x = torch.as_tensor(np.random.default_rng(0).standard_t(4, size=(60, 6)) @ np.diag([1, 2, 3, 1, 2, 3]))
    scale = scale_of_rank(2, 6, 2)
    mixture = StudentTMixture(
        2, 6, covariance_type="lowrank", rank=2, scale_update=scale_update, reg_covar=0.0, tol=0.0, max_iter=1,
        warm_start=True, init=x[:2], dtype=torch.float64,
    ).fit(x)  # fmt: skip
    mixture.whitening, mixture.loadings = scale.whitening, scale.loadings
    before = mixture.snapshot()
    r, u = mixture(x).numpy(), mixture.outlier_weights(x).numpy()
    mixture.fit(x)
    for k in range(2):
        n, w = r[:, k].sum(), (r * u)[:, k].sum()
        mean = (r * u)[:, k] @ x.numpy() / w
        centred = x.numpy() - mean
        scatter = (centred * (r * u)[:, k, None]).T @ centred
        alpha = w / n if scale_update == "px" else 1.0
        noise = (1 / before.scale.whitening[k].square()).numpy()
        expected = factor_analysis_step(scatter, n, alpha, before.scale.loadings[k].numpy(), noise)
        np.testing.assert_allclose(mixture.means[k], mean, rtol=1e-9)
        np.testing.assert_allclose(mixture.scales[k], expected, rtol=1e-8, atol=1e-10)


def test_data_with_the_structure_is_fitted_as_by_full_and_generalises_better():
    truth = analyzers(3, 16, 2)
    train, test = (truth.sample(n, generator=torch.Generator().manual_seed(n))[0] for n in (1500, 4000))
    settings = dict(generator=0, dof=5.0, dtype=torch.float64, tol=1e-7, max_iter=300)
    full = StudentTMixture(3, 16, covariance_type="full", **settings).fit(train)
    ours = StudentTMixture(3, 16, covariance_type="lowrank", rank=2, **settings).fit(train)
    assert ours.converged_
    assert np.diff(ours.history_).min() > -1e-10
    assert full.score(test) + 0.05 < ours.score(test) < truth.score(test)
    assert ours.bic(train) < full.bic(train)
    order = torch.cdist(truth.means, ours.means).argmin(1)
    error = (ours.scales[order] - truth.scales).norm(dim=(1, 2)) / truth.scales.norm(dim=(1, 2))
    assert float(error.max()) < 0.2


def test_enough_factors_are_the_fit_of_full():
    """With d(d−1)/2 ≤ dq − q(q−1)/2 any correlations can be represented."""
    truth = analyzers(1, 3, 1)
    x = truth.sample(2000, generator=torch.Generator().manual_seed(0))[0]
    settings = dict(generator=0, dof=5.0, dtype=torch.float64, tol=1e-9, max_iter=500, reg_covar=0.0)
    full = StudentTMixture(1, 3, covariance_type="full", **settings).fit(x)
    ours = StudentTMixture(1, 3, covariance_type="lowrank", rank=1, **settings).fit(x)
    assert ours.score(x) == pytest.approx(full.score(x), abs=1e-4)
    np.testing.assert_allclose(ours.scales, full.scales, atol=0.05)


def test_fewer_rows_than_features():
    truth = analyzers(2, 60, 2, spread=1.0)
    train, test = (truth.sample(n, generator=torch.Generator().manual_seed(n))[0] for n in (50, 2000))
    scores = {}
    for structure, rank in (("diag", None), ("lowrank", 2)):
        mixture = StudentTMixture(2, 60, covariance_type=structure, rank=rank, generator=0, dof=5.0).fit(train)
        assert (torch.linalg.eigvalsh(mixture.scales.double()) > 0).all()
        scores[structure] = mixture.score(test)
    assert scores["lowrank"] > scores["diag"] + 5


def test_embeddings_on_the_sphere_are_explained_better_than_by_diag():
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, 129.0) ** -0.5  # anisotropic, with no gap
    labels = torch.randint(6, (6000,), generator=generator)
    turns = torch.linalg.qr(torch.randn(6, 128, 128, generator=generator))[0]
    noise = torch.randn(6000, 128, generator=generator) * spectrum
    rows = torch.randn(6, 128, generator=generator)[labels] + 2 * torch.einsum("nd,nde->ne", noise, turns[labels])
    rows = torch.nn.functional.normalize(rows, dim=1)
    fits = [
        StudentTMixture(6, 128, covariance_type=structure, rank=rank, generator=0, max_iter=30).fit(rows[:3000])
        for structure, rank in (("diag", None), ("lowrank", 4), ("lowrank", 12))
    ]
    scores = [mixture.score(rows[3000:]) for mixture in fits]
    assert scores[0] + 1 < scores[1] < scores[2]


def test_a_stream_reaches_the_fit_of_all_rows():
    truth = analyzers(3, 10, 2, spread=4.0)
    rows = truth.sample(10_000, generator=torch.Generator().manual_seed(1))[0]
    settings = dict(covariance_type="lowrank", rank=2, dof=5.0, generator=0, dtype=torch.float64)
    whole = StudentTMixture(3, 10, tol=1e-6, max_iter=100, **settings).fit(rows)
    stream = StudentTMixture(3, 10, **settings)
    for batch in rows.split(100):
        stream.partial_fit(batch)
    assert stream.score(rows) == pytest.approx(whole.score(rows), abs=0.01)
    assert stream.score(rows) > StudentTMixture(3, 10, generator=0, dof=5.0).fit(rows).score(rows) + 1


def test_standardized_statistics_give_the_same_parameters():
    """Their factors have mean 0 and covariance I, as those of the model they lead to."""
    truth = analyzers(2, 5, 2)
    x = truth.sample(500, generator=torch.Generator().manual_seed(1))[0]
    parameters = Parameters(truth.weights, truth.means + 0.5, scale_of_rank(2, 5, 2), truth.dof)
    statistics = em.expectation([Chunk(x)], parameters, RULES, torch.float64)
    standard = statistics.standardized(parameters.scale)
    one, other = (maximization(s, parameters, RULES) for s in (statistics, standard))
    np.testing.assert_allclose(one.scale.loadings, other.scale.loadings, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(one.scale.whitening, other.scale.whitening, rtol=1e-8)
    np.testing.assert_allclose(standard.scatter[:, 5:, 0], 0, atol=1e-10)
    mean = statistics.reference + statistics.first / statistics.mass[:, None]
    cross = standard.about(one.scale, mean).scatter[:, :5, 1:] / statistics.mass[:, None, None]
    np.testing.assert_allclose(cross, one.scale.loadings, rtol=1e-8, atol=1e-10)


def test_standardized_statistics_of_frozen_means_keep_the_mean_of_the_factors():
    truth = analyzers(2, 5, 2)
    x = truth.sample(500, generator=torch.Generator().manual_seed(1))[0]
    parameters = Parameters(truth.weights, truth.means + 0.5, scale_of_rank(2, 5, 2), truth.dof)
    frozen = Frozen.of({"means": [True, False]}, False, 2, x.device)
    statistics = em.expectation([Chunk(x)], parameters, RULES, torch.float64)
    standard = statistics.standardized(parameters.scale, frozen)
    one, other = (maximization(s, parameters, RULES.holding(frozen)) for s in (statistics, standard))
    np.testing.assert_allclose(one.scale.loadings, other.scale.loadings, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(one.scale.whitening, other.scale.whitening, rtol=1e-8)
    assert standard.scatter[0, 5:, 0].abs().min() > 1
    scales = Frozen.of({"scales": [True, False]}, False, 2, x.device)
    assert torch.equal(statistics.standardized(parameters.scale, scales).scatter[0], statistics.scatter[0])


def test_a_component_wholly_explained_by_its_factors_keeps_some_noise():
    x = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, -2.0, 0.5]])
    mixture = StudentTMixture(1, 3, covariance_type="lowrank", rank=1, generator=0, dof=float("inf")).fit(x)
    assert mixture.whitening.isfinite().all()
    assert mixture.log_prob(x).isfinite().all()
    np.testing.assert_allclose(mixture.scales[0], np.cov(x.T, ddof=0), rtol=1e-3)


def test_parameters_are_counted_without_the_rotations_of_the_factors():
    mixture = StudentTMixture(4, 10, covariance_type="lowrank", rank=3)
    assert mixture.n_free_parameters == 3 + 4 * 10 + 4 * (10 * 3 + 10 - 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance_type": "lowrank"}, "covariance_type='lowrank' needs a rank"),
        ({"covariance_type": "lowrank", "rank": 3}, "rank must be smaller than n_features=3, got 3"),
        ({"covariance_type": "lowrank", "rank": 0}, "rank must be a positive integer, got 0"),
        ({"covariance_type": "lowrank", "rank": 1.5}, "rank must be a positive integer, got 1.5"),
        ({"covariance_type": "diag", "rank": 2}, "rank is for covariance_type='lowrank' only, got rank=2 with 'diag'"),
        ({"rank": 2}, "rank is for covariance_type='lowrank' only"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(2, 3, **settings)
