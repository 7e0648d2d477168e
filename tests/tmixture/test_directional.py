"""Mixtures of directions: Bessel functions of many digits, scipy's von Mises–Fisher, EM in loops."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import gammaln, logsumexp

from tmixture import DirectionalMixture
from tmixture.sphere import FAMILIES, bessel_ratio, log_bessel

both = pytest.mark.parametrize("family", list(FAMILIES))


def directions(K=3, d=5, seed=0):
    rows = torch.randn(K, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows.double(), dim=1)


def mixture_of(family, K=3, d=5, concentration=None, seed=0):
    """A mixture with given parameters."""
    mixture = DirectionalMixture(K, d, family=family, dtype=torch.float64, warm_start=True)
    mixture.weights = torch.arange(1.0, K + 1).double() / (K * (K + 1) / 2)
    mixture.directions = directions(K, d, seed)
    value = concentration or {"von_mises_fisher": 20.0, "cauchy": 0.6}[family]
    mixture.concentration = torch.full((K,), value).double()
    mixture.fitted = torch.ones(())
    return mixture


def log_density(family, x, mu, concentration):
    """Of one row, with formulas of its own."""
    d, t = len(x), float(x @ mu)
    if family == "von_mises_fisher":
        return stats.vonmises_fisher(mu, concentration).logpdf(x)
    uniform = gammaln(d / 2) - math.log(2) - d / 2 * math.log(math.pi)
    return uniform + (d - 1) * math.log((1 - concentration**2) / (1 + concentration**2 - 2 * concentration * t))


@pytest.mark.parametrize("d", [2, 3, 5, 16, 64, 512, 4096])
def test_the_bessel_functions_have_ten_digits(d):
    h = d / 2 - 1
    for x in (1e-6, 1e-2, 1.0, 10.0, 100.0, 1e3, 1e4):
        lower, upper = (mpmath.besseli(order, mpmath.mpf(x), maxterms=10**6) for order in (h, h + 1))
        assert float(log_bessel(h, np.array([x]))[0]) == pytest.approx(float(mpmath.log(lower)), rel=1e-10, abs=1e-10)
        assert float(bessel_ratio(h, np.array([x]))[0]) == pytest.approx(float(upper / lower), rel=1e-10)


@both
@pytest.mark.parametrize("d", [2, 3, 10, 300])
def test_the_density_integrates_to_one(family, d):
    """Over the cosine, whose uniform density is ∝ (1 − t²)^((d − 3)/2)."""
    mu = torch.zeros(1, d).double()
    mu[0, 0] = 1
    for concentration in {"von_mises_fisher": [0.0, 0.5, 30.0], "cauchy": [0.0, 0.3, 0.8]}[family]:
        mixture = mixture_of(family, 1, d, concentration=concentration or 1e-300)
        mixture.directions = mu
        area = math.log(2) + (d - 1) / 2 * math.log(math.pi) - gammaln((d - 1) / 2)

        def height(angle, mixture=mixture, area=area):
            row = torch.zeros(1, d).double()
            row[0, 0], row[0, 1] = math.cos(angle), math.sin(angle)
            return math.exp(float(mixture.log_prob(row)) + area + (d - 2) * math.log(max(math.sin(angle), 1e-300)))

        assert integrate.quad(height, 0, math.pi, limit=300)[0] == pytest.approx(1, rel=1e-6)


@both
def test_the_density_of_a_row_is_that_of_its_direction(family):
    mixture, x = mixture_of(family), torch.randn(20, 5).double()
    rows = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    parameters = list(zip(mixture.weights.tolist(), mixture.directions.numpy(), mixture.concentration.tolist()))
    expected = np.array([[math.log(w) + log_density(family, row, mu, c) for w, mu, c in parameters] for row in rows])
    np.testing.assert_allclose(mixture.log_joint(x), expected, rtol=1e-9)
    np.testing.assert_allclose(mixture.log_prob(7 * x), logsumexp(expected, axis=1), rtol=1e-9)
    np.testing.assert_allclose(mixture(x).sum(1), 1)
    assert mixture.predict(x.numpy()).tolist() == expected.argmax(1).tolist()
    assert mixture.score(x) == pytest.approx(logsumexp(expected, axis=1).mean())


@both
def test_a_step_is_that_of_the_loops(family):
    mixture = mixture_of(family)
    x = mixture_of(family, seed=3).sample(60, generator=0)[0]
    weight = torch.rand(60, generator=torch.Generator().manual_seed(0)).double()
    logs = mixture.log_joint(x).numpy()
    r = np.exp(logs - logsumexp(logs, axis=1, keepdims=True)) * weight.numpy()[:, None]
    rho, t = mixture.concentration.numpy(), (x @ mixture.directions.T).numpy()
    w = np.ones_like(r) if family == "von_mises_fisher" else 1 / (1 + rho**2 - 2 * rho * t)
    n, resultant = r.sum(0), (r * w).T @ x.numpy()
    mixture.max_iter = 1
    mixture.fit(x, weight)
    length = np.linalg.norm(resultant, axis=1)
    np.testing.assert_allclose(mixture.weights, n / n.sum(), rtol=1e-9)
    np.testing.assert_allclose(mixture.directions, resultant / length[:, None], rtol=1e-9)
    found = mixture.concentration.numpy()
    if family == "von_mises_fisher":
        np.testing.assert_allclose(bessel_ratio(1.5, found), length / n, rtol=1e-10)
    else:
        slope = -2 * found * n / (1 - found**2) - 2 * found * (r * w).sum(0) + 2 * length
        np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_one_component_is_the_fit_of_scipy():
    x = torch.from_numpy(stats.vonmises_fisher([0, 0, 1], 12.0).rvs(500, random_state=0))
    mu, kappa = stats.vonmises_fisher.fit(x.numpy())
    mixture = DirectionalMixture(1, 3, dtype=torch.float64, tol=1e-12).fit(x)
    np.testing.assert_allclose(mixture.directions[0], mu, rtol=1e-8)
    assert float(mixture.concentration) == pytest.approx(kappa, rel=1e-7)


@both
@pytest.mark.parametrize("d", [3, 64, 512])
def test_it_finds_what_it_was_drawn_from(family, d):
    concentration = {"von_mises_fisher": 1.5 * d, "cauchy": 0.5}[family]
    truth = mixture_of(family, 3, d, concentration=concentration)
    truth.directions = torch.eye(3, d).double()
    x, component = truth.sample(3000, generator=0)
    fitted = DirectionalMixture(3, d, family=family, n_init=3, generator=0).fit(x)
    order = (fitted.directions.double() @ truth.directions.T).argmax(0)
    assert sorted(order.tolist()) == [0, 1, 2]
    cosines = (fitted.directions[order].double() * truth.directions).sum(1)
    assert cosines.min() > 0.98
    np.testing.assert_allclose(fitted.concentration[order], concentration, rtol=0.15)
    np.testing.assert_allclose(fitted.weights[order], truth.weights, atol=0.04)
    assert (order.argsort()[fitted.predict(x)] == component).double().mean() > (0.75 if d == 3 else 0.95)


@both
def test_the_likelihood_rises_and_is_a_maximum(family):
    x = mixture_of(family, 3, 4, seed=5).sample(150, generator=1)[0]
    mixture = DirectionalMixture(2, 4, family=family, generator=0, tol=1e-13, max_iter=3000, dtype=torch.float64).fit(x)
    assert np.diff(mixture.history_).min() >= -1e-10
    assert mixture.history_[-1] == pytest.approx(mixture.score(x), abs=1e-10)
    top, rng = mixture.score(x), np.random.default_rng(0)
    for _ in range(20):
        moved = DirectionalMixture(2, 4, family=family, dtype=torch.float64)
        moved.load_state_dict(mixture.state_dict())
        noise = torch.from_numpy(rng.normal(size=(2, 4)))
        moved.directions = torch.nn.functional.normalize(mixture.directions + 3e-3 * noise, dim=1)
        moved.concentration = mixture.concentration * torch.from_numpy(np.exp(2e-3 * rng.normal(size=2)))
        assert moved.score(x) < top


def test_heavy_tails_bear_with_rows_that_point_elsewhere():
    generator = torch.Generator().manual_seed(0)
    truth = mixture_of("von_mises_fisher", 1, 16, concentration=400.0)
    x = torch.cat([truth.sample(200, generator=generator)[0], torch.randn(60, 16, generator=generator).double()])
    fits = {family: DirectionalMixture(1, 16, family=family, tol=1e-9, max_iter=500).fit(x) for family in FAMILIES}
    errors = {name: 1 - float((fit.directions.double() * truth.directions).sum()) for name, fit in fits.items()}
    assert errors["cauchy"] < 0.5 * errors["von_mises_fisher"]


@both
def test_chunks_weights_files_and_norms_do_not_matter(family, tmp_path):
    x = mixture_of(family, seed=5).sample(200, generator=1)[0]
    settings = dict(family=family, generator=0, dtype=torch.float64)
    plain = DirectionalMixture(3, 5, **settings).fit(x)
    np.save(tmp_path / "x.npy", x.numpy())
    scaled = x * torch.linspace(0.1, 50, 200).double()[:, None]
    for data, size in ((x, 7), (str(tmp_path / "x.npy"), 50), (scaled, None)):
        other = DirectionalMixture(3, 5, chunk_size=size, **settings).fit(data)
        np.testing.assert_allclose(other.directions, plain.directions, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(other.concentration, plain.concentration, rtol=1e-7)
    start = x[:3]
    weight = torch.arange(200) % 3
    settings.update(tol=1e-13, max_iter=5000)
    one = DirectionalMixture(3, 5, init=start, **settings).fit(x, weight)
    other = DirectionalMixture(3, 5, init=start, **settings).fit(x.repeat_interleave(weight, 0))
    np.testing.assert_allclose(one.directions, other.directions, rtol=1e-5, atol=1e-5)
    given = DirectionalMixture(3, 5, **{**settings, "max_iter": 0}).fit(x, responsibilities=plain.predict(x))
    assert (given.predict(x) == plain.predict(x)).double().mean() > 0.9


@both
def test_a_stream_ends_where_a_fit_does(family):
    concentration = {"von_mises_fisher": 40.0, "cauchy": 0.7}[family]
    x = mixture_of(family, 3, 8, concentration=concentration).sample(6000, generator=0)[0]
    settings = dict(family=family, generator=0, dtype=torch.float64)
    whole, streamed = (DirectionalMixture(3, 8, **settings) for _ in range(2))
    for batch in x.split(200):
        streamed.partial_fit(batch)
    assert streamed.score(x) == pytest.approx(whole.fit(x).score(x), abs=0.01)
    assert float(streamed.seen) == 6000
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    whole.partial_fit(x[:10], torch.zeros(10))
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    constant = DirectionalMixture(3, 8, step_size=1.0, **settings).fit(x)  # that batch's M-step, and no memory
    step = DirectionalMixture(3, 8, warm_start=True, max_iter=1, **settings)
    step.load_state_dict(constant.state_dict())
    torch.testing.assert_close(constant.partial_fit(x[:500]).directions, step.fit(x[:500]).directions)
    with pytest.raises(ValueError, match="features, but the mixture"):
        streamed.partial_fit(x[:, :3])


@both
def test_it_is_saved_moved_and_differentiable(family, tmp_path):
    x = mixture_of(family, seed=5).sample(200, generator=1)[0].float()
    mixture = DirectionalMixture(3, 5, family=family, init=x[:3], generator=3).fit(x)
    mixture.save(tmp_path / "mixture")
    again = DirectionalMixture.load(tmp_path / "mixture")
    assert torch.equal(again.log_prob(x), mixture.log_prob(x))
    assert (again.history_, again.family, again.generator) == (mixture.history_, family, 3)
    rows = x[:5].double().requires_grad_()
    assert torch.autograd.gradcheck(mixture.double().log_prob, rows)
    empty = mixture.predict(torch.empty(0, 5).double())
    assert empty.shape == (0,)


def test_identical_rows_are_nearly_a_point():
    x = torch.nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    for family in FAMILIES:
        mixture = DirectionalMixture(2, 6, family=family, generator=0, max_iter=500).fit(x[:2].repeat(50, 1))
        assert mixture.concentration.isfinite().all()
        assert mixture.log_prob(x).isfinite().all()


def test_what_does_not_fit_is_refused(tmp_path):
    x = torch.randn(20, 4)
    mixture = DirectionalMixture(2, 4)
    for wrong, message in [
        (torch.cat([x, torch.zeros(1, 4)]), "row 20 of a chunk is zero"),
        (x[:, :3], "3 features, but the mixture has n_features=4"),
        (x[:1], "n_components=2 needs at least as many"),
        (torch.full_like(x, torch.nan), "must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            mixture.fit(wrong)
        assert not mixture.is_fitted
    with pytest.raises(RuntimeError, match="this DirectionalMixture is not fitted yet"):
        mixture.predict(x)
    with pytest.raises(ValueError, match="family must be one of 'von_mises_fisher', 'cauchy'"):
        DirectionalMixture(2, 4, family="normal")
    with pytest.raises(ValueError, match="n_features must be at least 2"):
        DirectionalMixture(2, 1)
    with pytest.raises(ValueError, match="init must be one of"):
        DirectionalMixture(2, 4, init="k-means")
    (tmp_path / "no").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no DirectionalMixture"):
        DirectionalMixture.load(tmp_path / "no")
