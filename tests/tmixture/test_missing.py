"""Values that are missing at random: scipy's densities, EM in loops, and regressions."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma

from tmixture import StudentTMixture

from . import naive
from .helpers import CLOSED_FORM, STRUCTURES, TIED, assert_same_parameters, from_model, of, parameters

INF = float("inf")
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def with_gaps(x, share=0.3, seed=0):
    """The rows with NaN in the place of some values, the first ones whole and one without any value."""
    x = torch.as_tensor(np.array(x)).clone()
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share] = torch.nan
    x[:5] = torch.as_tensor(np.array(x[:5])).nan_to_num(0.5)
    x[-1] = torch.nan
    return x


def problem(structure, K=2, d=3, n=60, dof=5.0):
    """A model, and rows of another one with gaps."""
    model = naive.random_model(K, d, structure, dof=dof)
    return model, with_gaps(naive.draw(naive.random_model(K, d, structure, seed=3, dof=4.0), n))


def log_density(row, mean, scale, dof):
    """Of what is observed of a row, by scipy."""
    seen = ~np.isnan(row)
    if not seen.any():
        return 0.0
    if math.isinf(dof):
        return stats.multivariate_normal(mean[seen], scale[np.ix_(seen, seen)]).logpdf(row[seen])
    return stats.multivariate_t(mean[seen], scale[np.ix_(seen, seen)], df=dof).logpdf(row[seen])


def log_joint(x, model):
    components = list(zip(model.weights, model.means, model.scales, model.dof))
    return np.array([[math.log(w) + log_density(row, m, s, v) for w, m, s, v in components] for row in x.numpy()])


def log_likelihood(x, model):
    return np.logaddexp.reduce(log_joint(x, model), axis=1)


def em_step(x, model, structure, *, learn_dof=False):
    """Of classic EM, one row and component after the other."""
    x, (K, d) = x.numpy(), model.means.shape
    logs = log_joint(torch.as_tensor(x), model)
    r = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
    n, w, constant = r.sum(0), np.zeros(K), np.zeros(K)
    first, second = np.zeros((K, d)), np.zeros((K, d, d))
    for i, row in enumerate(x):
        o, m = ~np.isnan(row), np.isnan(row)
        for k in range(K):
            mean, scale, nu = model.means[k], model.scales[k], model.dof[k]
            inverse = np.linalg.inv(scale[np.ix_(o, o)])
            gain = scale[np.ix_(m, o)] @ inverse
            delta = (row[o] - mean[o]) @ inverse @ (row[o] - mean[o])
            u = 1.0 if math.isinf(nu) else (nu + o.sum()) / (nu + delta)
            whole, rest = row.copy(), np.zeros((d, d))
            whole[m] = mean[m] + gain @ (row[o] - mean[o])
            rest[np.ix_(m, m)] = scale[np.ix_(m, m)] - gain @ scale[np.ix_(o, m)]
            w[k] += r[i, k] * u
            first[k] += r[i, k] * u * whole
            second[k] += r[i, k] * (u * np.outer(whole, whole) + rest)
            if not math.isinf(nu):
                log_u = digamma((nu + o.sum()) / 2) - math.log((nu + delta) / 2)
                constant[k] += r[i, k] * (log_u - u)
    means = first / w[:, None]
    scatter = second - w[:, None, None] * means[:, :, None] * means[:, None, :]
    dof = model.dof
    if learn_dof:
        dof = np.array([naive.dof_root(1 + c, (0.5, 200.0)) for c in constant / n])
    return naive.Model(n / n.sum(), means, naive.constrained(scatter, n, structure), dof)


@every_structure
@pytest.mark.parametrize("dof", [5.0, INF])
def test_the_density_is_that_of_what_is_observed(structure, dof):
    model, x = problem(structure, dof=dof)
    mixture = from_model(model, structure, allow_missing=True)
    expected = log_joint(x, naive.Model(**parameters(mixture)))
    np.testing.assert_allclose(mixture.log_joint(x), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mixture.log_prob(x), np.logaddexp.reduce(expected, axis=1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mixture(x)[-1], model.weights)  # of a row that says nothing
    assert float(mixture.score(x)) == pytest.approx(np.logaddexp.reduce(expected, axis=1).mean())


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize(("dof", "learn_dof"), [(5.0, False), (5.0, True), (INF, False)])
def test_a_step_is_that_of_the_loops(structure, dof, learn_dof):
    model, x = problem(structure, dof=dof)
    settings = dict(scale_update="classic", learn_dof="component" if learn_dof else False, allow_missing=True)
    for chunk_size in (7, 1000):
        mixture = from_model(model, structure, max_iter=1, chunk_size=chunk_size, **settings).fit(x)
        assert_same_parameters(mixture, em_step(x, model, structure, learn_dof=learn_dof), rtol=1e-8)


@every_structure
@pytest.mark.parametrize(("learn_dof", "scale_update"), [(False, "px"), ("component", "px"), ("shared", "classic")])
def test_history_is_the_observed_likelihood_and_rises(structure, learn_dof, scale_update):
    model, x = problem(structure, n=120)
    settings = dict(learn_dof=learn_dof, scale_update=scale_update, max_iter=40, allow_missing=True)
    mixture = from_model(model, structure, **settings).fit(x)
    assert np.diff(mixture.history_).min() >= -1e-9
    expected = log_likelihood(x, naive.Model(**parameters(mixture))).mean()
    assert mixture.history_[-1] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_the_end_is_a_maximum(structure):
    model, x = problem(structure, n=150)
    mixture = from_model(model, structure, allow_missing=True, tol=1e-12, max_iter=3000, reg_covar="auto").fit(x)
    end, rng = parameters(mixture), np.random.default_rng(0)
    top = log_likelihood(x, naive.Model(**end)).sum()
    for _ in range(8):
        stretch = np.exp(2e-3 * rng.normal(size=(1 if structure in TIED else 2, 1, 1)))
        means = end["means"] + 2e-3 * rng.normal(size=end["means"].shape)
        assert log_likelihood(x, naive.Model(**{**end, "scales": stretch * end["scales"]})).sum() < top
        assert log_likelihood(x, naive.Model(**{**end, "means": means})).sum() < top


@every_structure
def test_where_nothing_is_missing_nothing_changes(structure):
    x = torch.as_tensor(naive.draw(naive.random_model(2, 3, structure, dof=4.0), 100))
    settings = dict(**of(structure), generator=0, dtype=torch.float64, max_iter=15)
    one, other = (StudentTMixture(2, 3, allow_missing=allowed, **settings).fit(x) for allowed in (True, False))
    assert_same_parameters(one, other, rtol=1e-9)
    assert torch.equal(one.impute(x), x)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x))


@every_structure
def test_imputed_values_are_the_regression_on_the_others(structure):
    model, x = problem(structure)
    mixture = from_model(model, structure, allow_missing=True)
    imputed = mixture.impute(x)
    seen = ~x.isnan()
    assert torch.equal(imputed[seen], x[seen])
    for i in (10, 20, 30):
        if not seen[i].any() or seen[i].all():
            continue
        expected = mixture.conditional(seen[i], x[i][seen[i]]).mean
        torch.testing.assert_close(imputed[i][~seen[i]], expected)
    torch.testing.assert_close(imputed[-1], mixture.weights @ mixture.means)


@every_structure
def test_rows_with_gaps_teach_more_than_whole_ones_alone(structure):
    """What is missing depends on the first feature, so that whole rows alone are a biased sample."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0, 0.0], [12.0, 12.0, 12.0]])
    noise = torch.randn(2000, 3, generator=generator)
    noise[:, 1:] += noise[:, :1]
    whole = truth[torch.arange(2000) % 2] + noise
    gappy = whole.clone()
    gappy[(noise[:, 0] > 0.3)[:, None] & (torch.tensor([False, True, True]))] = torch.nan
    settings = dict(dof=INF, generator=0, **of(structure))
    with_gaps = StudentTMixture(2, 3, allow_missing=True, **settings).fit(gappy)
    without = StudentTMixture(2, 3, **settings).fit(gappy[~gappy.isnan().any(1)])
    errors = [
        float((mixture.means[mixture.means[:, 0].argsort()] - truth).abs().mean()) for mixture in (with_gaps, without)
    ]
    assert errors[0] < (0.15 if structure in ("full", "lowrank", "tied") else 0.75) * errors[1] + 0.03


@every_structure
def test_streams_weights_and_labels_meet_gaps(structure):
    model, x = problem(structure, n=200)
    weight = torch.arange(200) % 3
    weighted = from_model(model, structure, allow_missing=True, max_iter=5).fit(x, weight)
    repeated = from_model(model, structure, allow_missing=True, max_iter=5).fit(x.repeat_interleave(weight, 0))
    assert_same_parameters(weighted, repeated, rtol=1e-8)
    settings = dict(**of(structure), generator=0, dtype=torch.float64, allow_missing=True, max_iter=20)
    streamed = StudentTMixture(2, 3, **settings)
    for batch in x.split(25):
        streamed.partial_fit(batch)
    assert streamed.score(x) > StudentTMixture(2, 3, **settings).fit(x).score(x) - 1
    known = torch.where(torch.arange(200) % 4 == 0, torch.arange(200) % 8 // 4, -1)
    labelled = StudentTMixture(2, 3, anchor_rows=5, **settings).fit(x, labels=known)
    assert np.diff(labelled.history_).min() >= -1e-9


def test_a_gradient_passes_by_what_is_missing():
    model, x = problem("full")
    mixture = from_model(model, "full", allow_missing=True)
    rows = x.clone().requires_grad_()
    mixture.log_prob(rows).sum().backward()
    assert (rows.grad[x.isnan()] == 0).all()
    assert (rows.grad[~x.isnan()] != 0).all()
    step = torch.zeros_like(x)
    step[0, 1] = 1e-6
    change = (mixture.log_prob(x + step).sum() - mixture.log_prob(x - step).sum()) / 2e-6
    assert float(rows.grad[0, 1]) == pytest.approx(float(change), rel=1e-5)


def test_outliers_are_told_by_what_is_observed():
    mixture = StudentTMixture.from_parameters([1.0], torch.zeros(1, 3), dof=INF, scales=torch.eye(3)[None])
    mixture.allow_missing = True
    x = torch.tensor([[3.0, torch.nan, torch.nan], [3.0, 0.0, 0.0], [torch.nan] * 3])
    expected = [stats.chi2(1).sf(9), stats.chi2(3).sf(9), 1.0]
    np.testing.assert_allclose(mixture.tail_probability(x)[:, 0], expected, rtol=1e-5)
    assert mixture.predict(x, outliers=0.01).tolist() == [-1, 0, 0]


def test_a_file_and_a_setting(tmp_path):
    _, x = problem("diag")
    StudentTMixture(2, 3, allow_missing=True, generator=0).fit(x).save(tmp_path / "mixture")
    again = StudentTMixture.load(tmp_path / "mixture")
    assert again.allow_missing
    assert again.predict(x.numpy()).tolist() == again.predict(x).tolist()


def test_what_cannot_be_is_refused():
    _, x = problem("diag")
    with pytest.raises(ValueError, match="data must be finite and below 1e15 in magnitude, but row 5 holds nan"):
        StudentTMixture(2, 3).fit(torch.cat([x[:5], x[-1:]]))
    mixture = StudentTMixture(2, 3, allow_missing=True, generator=0)
    with pytest.raises(ValueError, match="row 0 holds inf in column 1"):
        mixture.fit(torch.tensor([[torch.nan, torch.inf, 0.0]] * 5))
    assert not mixture.is_fitted
    with pytest.raises(ValueError, match=r"data has no value of features \[1\]: leave them out"):
        mixture.fit(torch.tensor([[0.0, torch.nan, 1.0], [torch.nan, torch.nan, 2.0]]))
    assert not mixture.is_fitted
    with pytest.raises(ValueError, match="max_candidates cannot be given with allow_missing=True"):
        StudentTMixture(2, 3, allow_missing=True, max_candidates=1).fit(x)
    with pytest.raises(ValueError, match="impute needs a mixture with allow_missing=True"):
        StudentTMixture(2, 3, generator=0).fit(x.nan_to_num(0.0)).impute(x)
