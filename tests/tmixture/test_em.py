"""The EM iteration: against naive loops, never downhill, few steps in high dimension, stopping and re-seeding."""

import math

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture, em, reseeding
from tmixture.data.chunks import Chunk

from . import naive
from .helpers import CLOSED_FORM, LEARN_DOF, STRUCTURES, TIED, assert_same_parameters, from_model

INF = float("inf")


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize("learn_dof", LEARN_DOF)
@pytest.mark.parametrize("scale_update", ["px", "classic"])
def test_em_is_the_naive_em(structure, learn_dof, scale_update):
    x, model = naive.heavy_tailed(structure=structure, N=40)
    sample_weight = np.random.default_rng(3).uniform(0.2, 2.0, len(x))
    mixture = from_model(model, structure, learn_dof=learn_dof, scale_update=scale_update, max_iter=5)
    mixture.fit(torch.as_tensor(x), sample_weight=sample_weight)
    history = []
    for _ in range(5):
        history.append(naive.log_likelihood(x, model, sample_weight))
        model = naive.em_step(
            x, model, structure, learn_dof=learn_dof, scale_update=scale_update, sample_weight=sample_weight
        )
    assert_same_parameters(mixture, model, rtol=1e-9)
    history.append(naive.log_likelihood(x, model, sample_weight))
    np.testing.assert_allclose(mixture.history_, np.array(history) / sample_weight.sum(), rtol=1e-9)
    assert mixture.n_iter_ == 5


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize("dof", [INF, (2.0, INF, 0.6)], ids=str)
def test_em_with_gaussian_and_mixed_components_is_the_naive_em(structure, dof):
    x, _ = naive.heavy_tailed(structure=structure, N=40)
    model = naive.random_model(3, 2, structure, dof=dof, spread=1.0)
    mixture = from_model(model, structure, max_iter=4).fit(torch.as_tensor(x))
    for _ in range(4):
        model = naive.em_step(x, model, structure)
    assert_same_parameters(mixture, model, rtol=1e-9)


def expanded_q(x, old, structure, weights, means, scales_star, alpha, dof):
    """The complete-data log-likelihood of the expanded model, expected under `old`; every term written out."""
    logs = naive.joint(x, old)
    r = np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))
    total, d = 0.0, x.shape[1]
    for i in range(len(x)):
        for k in range(len(weights)):
            half = (old.dof[k] + d) / 2
            rate = (old.dof[k] + naive.distance(x[i], old.means[k], old.scales[k])) / 2
            u, log_u = half / rate, naive.digamma(half) - math.log(rate)
            normal = -np.linalg.slogdet(scales_star[k])[1] / 2 + d / 2 * log_u
            normal -= u * naive.distance(x[i], means[k], scales_star[k]) / 2
            shape = dof[k] / 2
            gamma = shape * math.log(shape / alpha[k]) - naive.gammaln(shape) + shape * log_u - shape / alpha[k] * u
            total += r[i, k] * (math.log(weights[k]) + normal + gamma)
    return total


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize("learn_dof", ["shared", "component"])
def test_the_px_m_step_maximises_the_expanded_likelihood(structure, learn_dof):
    """Its gradient in every free parameter vanishes, by finite differences.

    With a tied scale and ν per component the maximum in (α, ν) is taken one after the other, so only ν is stationary.
    """
    x, old = naive.heavy_tailed(structure=structure, N=25)
    new = from_model(old, structure, learn_dof=learn_dof, max_iter=1).fit(torch.as_tensor(x))
    weights, means, scales, dof = (t.numpy() for t in (new.weights, new.means, new.scales, new.dof))
    classic = from_model(old, structure, scale_update="classic", max_iter=1).fit(torch.as_tensor(x))
    stars = classic.scales.numpy()
    alpha = stars[:, 0, 0] / scales[:, 0, 0]
    np.testing.assert_allclose(scales * alpha[:, None, None], stars, rtol=1e-7, atol=1e-9)  # the same shape

    def q(*, weights=weights, means=means, stars=stars, alpha=alpha, dof=dof):
        return expanded_q(x, old, structure, weights / weights.sum(), means, stars, alpha, dof)

    def slope(name, value, direction, step=1e-4):
        return (q(**{name: value + step * direction}) - q(**{name: value - step * direction})) / (2 * step)

    first, everyone = np.eye(3)[0], np.ones(3)
    assert slope("weights", weights, first) == pytest.approx(0, abs=1e-5)
    assert slope("means", means, np.outer(first, [1.0, -2.0])) == pytest.approx(0, abs=1e-5)
    widen = stars * (everyone if structure in TIED else first)[:, None, None]
    assert slope("stars", stars, widen) == pytest.approx(0, abs=1e-5)
    if structure not in TIED or learn_dof != "component":
        assert slope("alpha", alpha, everyone if structure in TIED else first) == pytest.approx(0, abs=1e-5)
    if learn_dof == "shared":
        assert slope("dof", dof, everyone) == pytest.approx(0, abs=1e-5)
    else:
        inside = np.eye(3)[[k for k in range(3) if 0.5 < dof[k] < 200]]
        assert len(inside) > 0
        for direction in inside:
            assert slope("dof", dof, direction) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("learn_dof", "scale_update", "dtype", "reg_covar"),
    [
        (False, "px", torch.float64, 0.3),
        ("shared", "px", torch.float32, 0.0),
        ("component", "px", torch.float64, 0.0),
        ("component", "classic", torch.float64, 0.3),
        (False, "classic", torch.float32, 0.0),
    ],
)
def test_the_objective_never_decreases(structure, learn_dof, scale_update, dtype, reg_covar):
    x, model = naive.heavy_tailed(K=3, d=3, N=200, structure=structure)
    settings = dict(learn_dof=learn_dof, scale_update=scale_update, reg_covar=reg_covar)
    mixture = from_model(model, structure, max_iter=40, dtype=dtype, **settings)
    mixture.fit(torch.as_tensor(x).to(dtype))
    assert mixture.n_reseeded_ == 0
    gains = np.diff(mixture.history_)
    slack = (1e-10 if dtype == torch.float64 else 5e-7) * np.abs(mixture.history_).max()
    assert gains.min() >= -slack
    assert mixture.history_[-1] > mixture.history_[0] + 0.1


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_regularization_is_a_prior_that_the_history_includes(structure):
    """Gaussian: Σ_k = (S_k + N/K·λ·I)/n_k, and the objective is log L/N − ½·λ·mean_k trace(Σ_k⁻¹)."""
    x, model = naive.heavy_tailed(K=3, d=3, N=200, structure=structure)
    model = naive.replace(model, dof=np.full(3, INF))
    lam = 0.3
    plain = naive.em_step(x, model, structure)
    mixture = from_model(model, structure, reg_covar=lam, max_iter=1).fit(torch.as_tensor(x))
    added = lam * np.ones(3) if structure in TIED else lam / 3 / plain.weights
    np.testing.assert_allclose(mixture.scales, plain.scales + added[:, None, None] * np.eye(3), rtol=1e-9, atol=1e-12)
    for history, scales in zip(mixture.history_, (model.scales, mixture.scales.numpy())):
        score = naive.log_likelihood(
            x, naive.replace(model, **({} if scales is model.scales else named(mixture)))
        ) / len(x)
        penalty = lam * np.trace(np.linalg.inv(scales), axis1=1, axis2=2).mean() / 2
        assert history == pytest.approx(score - penalty, rel=1e-9)


def named(mixture):
    """The parameters but ν, as arrays."""
    return {name: getattr(mixture, name).numpy() for name in ("weights", "means", "scales")}


@pytest.fixture(scope="module")
def student_rows():
    """`rows(d)`: 4000 rows of one standard t with ν = 5."""

    def rows(d):
        rng = np.random.default_rng(0)
        return torch.as_tensor(rng.normal(size=(4000, d)) / np.sqrt(rng.gamma(2.5, 1 / 2.5, size=(4000, 1))))

    return rows


@pytest.mark.slow
@pytest.mark.parametrize("learn_dof", [False, "shared"])
def test_one_t_in_512_dimensions_needs_few_iterations(student_rows, learn_dof):
    mixture = StudentTMixture(
        1, 512, dof=100.0, learn_dof=learn_dof, covariance_type="full", tol=1e-9, dtype=torch.float64, generator=0
    )
    mixture.fit(student_rows(512))
    assert mixture.converged_
    assert mixture.n_iter_ <= 12
    if learn_dof:
        assert float(mixture.dof) == pytest.approx(5.0, rel=0.1)


def test_the_classic_update_needs_many(student_rows):
    fits = {
        update: StudentTMixture(
            1, 64, learn_dof="shared", dof=100.0, covariance_type="full", tol=1e-9, scale_update=update, max_iter=300,
            dtype=torch.float64, generator=0,
        ).fit(student_rows(64))
        for update in ("px", "classic")
    }  # fmt: skip
    assert fits["px"].n_iter_ <= 12
    assert fits["classic"].n_iter_ > 50
    assert fits["px"].history_[-1] >= fits["classic"].history_[-1] - 1e-9 * abs(fits["px"].history_[-1])
    assert float(fits["px"].dof) == pytest.approx(float(fits["classic"].dof), rel=1e-3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.99])
def test_what_is_left_of_a_geometric_series_is_its_tail(rate):
    history = [-7 - 3 * rate**n for n in range(6)]
    assert em.what_is_left(history) == pytest.approx(3 * rate**3, rel=1e-9)  # of the last three the largest
    assert em.what_is_left(history[:4]) == INF
    assert em.what_is_left([0.0, 1.0, 3.0, 3.1, 3.11]) == INF  # a step grew
    assert em.what_is_left([-40.0, -40 - 1e-6, -40.0, -40.0, -40.0]) == pytest.approx(1e-6)  # rounding


@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-7])
def test_a_fit_ends_where_little_is_left(tol):
    """The last step is far smaller than what is left: a fit that stopped by it would end too early."""
    x, model = naive.heavy_tailed(N=100)
    x = torch.as_tensor(x)
    end = from_model(model, "full", tol=0.0, max_iter=3000).fit(x).history_[-1]
    mixture = from_model(model, "full", tol=tol, max_iter=3000).fit(x)
    assert mixture.converged_
    assert end - mixture.history_[-1] <= 1.5 * tol
    assert em.what_is_left(mixture.history_) <= tol < em.what_is_left(mixture.history_[:-1])
    stopped = from_model(model, "full", tol=tol, max_iter=3).fit(x)
    assert (stopped.converged_, stopped.n_iter_, len(stopped.history_)) == (False, 3, 4)
    np.testing.assert_allclose(stopped.history_, mixture.history_[:4], rtol=1e-12)


def test_a_component_without_rows_is_given_a_new_start():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 20])
    model = naive.random_model(2, 2, "full", dof=INF)
    model.means[:] = [[0, 0], [1e4, 1e4]]
    with pytest.warns(RuntimeWarning, match="started anew"):
        mixture = from_model(model, "full", generator=0, max_iter=200, tol=1e-10).fit(torch.as_tensor(x))
    assert mixture.n_reseeded_ >= 1
    assert sorted(mixture.means[:, 0].round().tolist()) == [0, 20]
    np.testing.assert_allclose(mixture.weights, 0.5, atol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_reseeding_keeps_the_scale_and_shares_the_weight_of_the_component_it_starts_in(structure):
    model = naive.random_model(3, 2, structure, dof=(2.0, 5.0, 9.0), spread=50.0)
    parameters = from_model(model, structure).snapshot()
    candidates = parameters.means[[1]] + 0.1
    after, source = reseeding.reseed(parameters, [0], candidates)
    assert source.tolist() == [1, 1, 2]
    np.testing.assert_allclose(after.means[0], candidates[0])
    np.testing.assert_allclose(after.means[1:], parameters.means[1:])
    np.testing.assert_allclose(after.scale.dense(3, 2), parameters.scale.dense(3, 2)[source])
    assert after.dof.tolist() == [5.0, 5.0, 9.0]
    shares = np.array([model.weights[1] / 2, model.weights[1] / 2, model.weights[2]])
    np.testing.assert_allclose(after.weights, shares / shares.sum())


def test_new_starts_come_from_the_worse_explained_half():
    model = naive.random_model(1, 2, "full", dof=INF)
    mixture = from_model(model, "full")
    x = torch.as_tensor(naive.draw(model, 8))
    drawn = reseeding.poorly_explained(
        [Chunk(x[:5]), Chunk(x[5:], torch.ones(3))],
        mixture.snapshot(),
        1,
        torch.float64,
        torch.Generator().manual_seed(0),
    )
    likelihood = mixture.log_prob(x)
    ranks = [int((likelihood < value).sum()) for value in mixture.log_prob(drawn)]
    assert len(drawn) == 2  # half of four drawn rows
    assert len(set(ranks)) == 2
    assert max(ranks) < 6
