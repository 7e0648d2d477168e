"""Degenerate data: each has a defined answer."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score

from tmixture import StudentTMixture

from .helpers import CLOSED_FORM, STRUCTURES, assert_same_parameters, of

INF = float("inf")
every_structure = pytest.mark.parametrize("structure", STRUCTURES)
every_dof = pytest.mark.parametrize("dof", [4.0, INF])


def rows(n=200, d=3, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def blobs(n=300, d=3, K=3, seed=0, dtype=torch.float32):
    centres = 12 * torch.nn.functional.normalize(rows(K, d, seed + 1, torch.float64), dim=1)
    labels = torch.arange(n) % K
    return (centres[labels] + rows(n, d, seed, torch.float64)).to(dtype), labels


def fit(x, K, structure, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of repaired scale matrices
        settings = {**of(structure), "generator": 0, "dtype": x.dtype, **settings}
        return StudentTMixture(K, x.shape[1], **settings).fit(x)


def assert_sane(mixture, x):
    """Parameters of a mixture, and finite answers to everything."""
    assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-4)
    assert (mixture.weights >= 0).all()
    assert mixture.means.isfinite().all()
    assert mixture.scales.isfinite().all()
    assert (mixture.scales.diagonal(dim1=1, dim2=2) > 0).all()
    assert (mixture.dof > 0).all()
    assert mixture.log_prob(x).isfinite().all()
    responsibilities = mixture(x)
    torch.testing.assert_close(responsibilities.sum(1), torch.ones(len(x), dtype=responsibilities.dtype))
    weights = mixture.outlier_weights(x)
    assert ((weights >= 0) & weights.isfinite()).all()
    assert all(math.isfinite(value) for value in mixture.history_)


@every_structure
@pytest.mark.parametrize(
    ("dof", "learn_dof", "dtype"),
    [
        (4.0, False, torch.float32),
        (4.0, "component", torch.float64),
        (4.0, "shared", torch.float32),
        (INF, False, torch.float64),
    ],
)
def test_one_component(structure, dof, learn_dof, dtype):
    x = rows(dtype=dtype)
    mixture = fit(x, 1, structure, dof=dof, learn_dof=learn_dof)
    assert_sane(mixture, x)
    assert mixture.weights.tolist() == [1.0]
    assert mixture.predict(x).unique().tolist() == [0]
    if dof == INF:
        torch.testing.assert_close(mixture.means[0], x.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("structure", CLOSED_FORM)
@every_dof
def test_one_feature(structure, dof):
    x = torch.cat([rows(100, 1), rows(100, 1, 1) + 20])
    mixture = fit(x, 2, structure, dof=dof)
    assert_sane(mixture, x)
    assert adjusted_rand_score(mixture.predict(x), torch.arange(200) // 100) == 1


@every_structure
@every_dof
@pytest.mark.parametrize("K", [1, 2, 7])
def test_as_many_components_as_rows(structure, dof, K):
    x = rows(K)
    mixture = fit(x, K, structure, dof=dof)
    assert_sane(mixture, x)
    assert_sane(mixture, rows(20, seed=1))


@every_structure
@pytest.mark.parametrize("init", ["kmeans", "kmeans++", "random"])
def test_fewer_rows_than_components_is_an_error(structure, init):
    with pytest.raises(ValueError, match="data has 4 rows with positive weight, but n_components=5 needs at least"):
        fit(rows(4), 5, structure, init=init)
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    with pytest.raises(ValueError, match="data has 4 rows with positive weight"):
        StudentTMixture(5, 3, **of(structure), init=init).fit(rows(6), weight)


@every_structure
@every_dof
@pytest.mark.parametrize("init", ["kmeans", "kmeans++", "random"])
def test_duplicate_rows(structure, dof, init):
    x = rows(6).repeat(40, 1)
    for K in (2, 6):
        mixture = fit(x, K, structure, dof=dof, init=init)
        assert_sane(mixture, x)
        assert_sane(mixture, rows(50, seed=2))


@every_structure
@every_dof
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_a_constant_feature(structure, dof, value):
    x, labels = blobs()
    x = torch.cat([x, torch.full((300, 1), value)], dim=1)
    mixture = fit(x, 3, structure, dof=dof)
    assert_sane(mixture, x)
    assert adjusted_rand_score(mixture.predict(x), labels) == 1
    torch.testing.assert_close(mixture.means[:, 3], torch.full((3,), value), rtol=1e-6, atol=1e-6)


@every_structure
@every_dof
def test_far_too_many_components(structure, dof):
    x, labels = blobs()
    mixture = fit(x, 40, structure, dof=dof)
    assert_sane(mixture, x)
    # Clusters may be split, but never joined.
    own = mixture.predict(x)
    assert all(len(labels[own == k].unique()) == 1 for k in own.unique().tolist())


@every_structure
@every_dof
@pytest.mark.parametrize("value", [0.0, 3.0, -1e5])
@pytest.mark.parametrize("init", ["kmeans", "kmeans++", "random"])
def test_all_rows_equal(structure, dof, value, init):
    x = torch.full((50, 3), value)
    mixture = fit(x, 3, structure, dof=dof, init=init)
    assert_sane(mixture, x)
    torch.testing.assert_close(mixture.weights @ mixture.means, x[0], rtol=1e-6, atol=1e-6)


@every_structure
def test_one_huge_outlier(structure):
    x, labels = blobs()
    clean = fit(x, 3, structure)
    dirty_x = torch.cat([x, torch.full((1, 3), 1e8)])
    dirty = fit(dirty_x, 3, structure)
    assert_sane(dirty, dirty_x)
    assert adjusted_rand_score(dirty.predict(x), labels) == 1
    # It costs its own share and hardly anything else.
    assert dirty.score(x) > clean.score(x) - 0.05
    assert dirty.outlier_weights(dirty_x[-1:]).max() < 1e-6
    order = torch.cdist(clean.means, dirty.means).argmin(1)
    assert (dirty.means[order] - clean.means).norm(dim=1).max() < 0.1


@every_structure
@every_dof
def test_an_offset_of_every_feature(structure, dof):
    x, _ = blobs(d=8)
    x = (x * 64).round() / 64  # so that float32 holds x + 1e4 nearly as exactly
    plain, shifted = fit(x, 3, structure, dof=dof), fit(x + 1e4, 3, structure, dof=dof)
    assert_sane(shifted, x + 1e4)
    assert torch.equal(plain.predict(x), shifted.predict(x + 1e4))
    torch.testing.assert_close(shifted.means - 1e4, plain.means, atol=5e-3, rtol=0)
    torch.testing.assert_close(shifted.scales, plain.scales, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(shifted.log_prob(x + 1e4), plain.log_prob(x), atol=2e-2, rtol=1e-3)


@every_dof
@pytest.mark.parametrize("n", [6, 15, 40])
def test_fewer_rows_than_features_with_full_scales(dof, n):
    x = torch.cat([rows(n, 30), rows(n, 30, 1) + 8])
    mixture = fit(x, 2, "full", dof=dof)
    assert_sane(mixture, x)
    assert adjusted_rand_score(mixture.predict(x), torch.arange(2 * n) // n) == 1
    assert_sane(fit(x, 2, "tied", dof=dof), x)


@every_structure
@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
def test_the_unit_of_the_data_does_not_matter(structure, scale):
    x, labels = blobs(dtype=torch.float64)
    plain, scaled = fit(x, 3, structure, tol=1e-13), fit(x * scale, 3, structure, tol=1e-13)
    assert adjusted_rand_score(scaled.predict(x * scale), labels) == 1
    torch.testing.assert_close(scaled.means / scale, plain.means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled.scales / scale**2, plain.scales, rtol=1e-5, atol=1e-6)


@every_structure
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integer_data(structure, dtype):
    x = (blobs()[0].abs() * 4).long().to(dtype)
    floats = x.float()
    mixture = StudentTMixture(3, 3, **of(structure), generator=0)
    expected = StudentTMixture(3, 3, **of(structure), generator=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mixture.fit(x)
        expected.fit(floats)
    torch.testing.assert_close(mixture.means, expected.means)
    assert torch.equal(mixture.predict(x), expected.predict(floats))
    assert torch.equal(mixture(x.numpy()), expected(floats))


@every_structure
def test_rows_of_weight_zero_are_not_there(structure):
    x, _ = blobs(dtype=torch.float64)
    weight = torch.ones(300)
    weight[::5] = 0
    junk = x.clone()
    junk[::5] = 1e6
    weighted = StudentTMixture(3, 3, **of(structure), generator=0, dtype=torch.float64).fit(junk, weight)
    without = fit(x[weight > 0], 3, structure)
    torch.testing.assert_close(weighted.means, without.means)
    torch.testing.assert_close(weighted.scales, without.scales)
    assert weighted.score(junk, weight) == pytest.approx(without.score(x[weight > 0]))


@every_structure
@pytest.mark.parametrize("factor", [1e-300, 1e-46, 1e-20, 3.0, 1e38, 1e300])
def test_weights_matter_up_to_a_factor_only(structure, factor):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(300, 3, generator=generator), torch.rand(300, generator=generator, dtype=torch.float64)
    settings = dict(**of(structure), generator=0, max_iter=10, tol=0.0, dtype=torch.float64)
    expected = StudentTMixture(3, 3, **settings).fit(x, weight)
    mixture = StudentTMixture(3, 3, **settings).fit(x, weight * factor)
    assert_same_parameters(mixture, expected, rtol=1e-9)
    one, other = mixture.information_criteria(x, weight * factor), expected.information_criteria(x, weight)
    assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], rel=1e-9)
    assert one["aic"] == pytest.approx(  # −2·log L is in units of the weight, the count of parameters is not
        (other["aic"] - 2 * expected.n_free_parameters) * factor + 2 * mixture.n_free_parameters, rel=1e-9
    )


@pytest.mark.parametrize("init", ["kmeans", "kmeans++", "random"])
def test_weights_over_sixty_decades(init):
    """Only rows of comparable weight count, and of those there may be fewer than components."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator)
    weight = 10 ** (60 * torch.rand(300, generator=generator, dtype=torch.float64) - 40)
    mixture = StudentTMixture(3, 3, init=init, generator=0).fit(x, weight)
    assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert mixture.log_prob(x).isfinite().all()
    with pytest.raises(ValueError, match=r"data has 1 rows with positive weight"):
        StudentTMixture(3, 3, init=init).fit(x[:9], torch.tensor([1e300] + [1.0] * 8, dtype=torch.float64))


@pytest.mark.parametrize("factor", [1e-31, 1e31])
def test_a_stream_refuses_weights_that_it_could_not_remember(factor):
    mixture = StudentTMixture(2, 2, generator=0)
    with pytest.raises(ValueError, match="sample_weight of a stream must have its largest value between"):
        mixture.partial_fit(torch.zeros(5, 2), torch.full((5,), factor, dtype=torch.float64))
    assert not mixture.running.started


@every_structure
@pytest.mark.parametrize("size", [1e-30, 9.9e14])
@pytest.mark.parametrize("dof", [4.0, float("inf")])
def test_rows_of_any_size_are_fitted(structure, size, dof):
    """Squared norms of 300 × 200 such rows exceed float32 a thousandfold where values near the limit are added up."""
    x = size * (2 * torch.rand(300, 200, generator=torch.Generator().manual_seed(0)) - 1)
    mixture = StudentTMixture(3, 200, **of(structure), dof=dof, generator=0, max_iter=5, tol=0.0).fit(x)
    assert mixture.means.isfinite().all()
    assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(mixture.history_).all()


@pytest.mark.parametrize("structure", ["diag", "full"])
@pytest.mark.parametrize("unit", [1.0, 1e-9, 1e9])
def test_features_in_units_of_their_own_are_all_heard(structure, unit):
    """Income with a deviation of 20,000 beside two ratios that tell the groups apart by eight of their deviations."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=1000)
    ratios = 0.05 * rng.normal(size=(1000, 2)) + 0.4 * np.where(labels[:, None] == 1, [1, -1], [0, 0])
    x = np.column_stack([20_000 * rng.normal(size=1000), ratios]) * [1.0, unit, unit]
    mixture = StudentTMixture(2, 3, covariance_type=structure, generator=0, dtype=torch.float64)
    assert adjusted_rand_score(labels, mixture.fit(x, responsibilities=labels).predict(x)) > 0.99


@pytest.mark.parametrize("where", ["rows", "entries"])
def test_saturated_values_do_not_hide_the_clusters(where):
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=2000)
    x = 4 * rng.normal(size=(4, 64))[labels] + rng.normal(size=(2000, 64))
    bad = rng.random(2000) < 0.02
    saturated = 65504 * rng.choice([-1, 1], size=(bad.sum(), 64))
    x[bad] = saturated if where == "rows" else np.where(rng.random(saturated.shape) < 0.1, saturated, x[bad])
    mixture = StudentTMixture(4, 64, generator=0).fit(x)
    assert adjusted_rand_score(labels[~bad], mixture.predict(x[~bad])) > 0.99


@pytest.mark.parametrize("distance", [300.0, 1e3, 1e5])
def test_a_rare_cluster_far_away_is_found(distance):
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(3, 16))[rng.integers(3, size=2000)] + rng.normal(size=(2000, 16))
    x[:18] = distance + 0.5 * rng.normal(size=(18, 16))
    labels = StudentTMixture(4, 16, generator=0).fit_predict(x)
    assert len(set(labels[:18].tolist())) == 1
    assert labels[0] not in labels[18:]


def test_a_component_on_equal_values_is_named_and_does_not_win():
    """Iris: 29 flowers have the same petal width, and a component on them has a higher likelihood than the species."""
    x, species = load_iris(return_X_y=True)
    with pytest.warns(RuntimeWarning, match=r"next to no variance in features \[3\]"):
        alone = StudentTMixture(3, 4, init="random", generator=4).fit(x)
    sound = StudentTMixture(3, 4, init="random", n_init=5, generator=4).fit(x)
    assert alone.history_[-1] > sound.history_[-1]
    assert adjusted_rand_score(species, alone.predict(x)) < 0.5
    assert adjusted_rand_score(species, sound.predict(x)) > 0.8


@every_structure
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", ["one-hot", "line", "simplex"])
def test_the_objective_rises_where_rows_do_not_fill_the_space(structure, dtype, data):
    rng = np.random.default_rng(0)
    x = {
        "one-hot": lambda: np.eye(5)[rng.integers(5, size=300)],
        "line": lambda: rng.normal(size=(300, 1)) @ rng.normal(size=(1, 33)),
        "simplex": lambda: rng.dirichlet(np.ones(6), size=300),
    }[data]()
    mixture = StudentTMixture(1, x.shape[1], **of(structure), generator=0, dtype=dtype).fit(x)
    assert np.diff(mixture.history_).min() > -1e-5
    assert mixture.converged_ or structure == "lowrank"  # whose M-step only climbs, and slowly here
    assert mixture.log_prob(torch.as_tensor(x)).isfinite().all()


def test_a_component_of_weight_zero_has_finite_gradients():
    scales, x = torch.eye(2).repeat(2, 1, 1), rows(5, 2)
    mixture = StudentTMixture.from_parameters([0.0, 1.0], torch.zeros(2, 2), scales).train_by_gradients()
    mixture.log_prob(x).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixture.parameters())
    torch.testing.assert_close(mixture.weights, torch.tensor([0.0, 1.0]))


def test_parameters_that_a_dtype_cannot_hold_are_refused():
    x = 1e-6 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(2, 2, dtype=torch.float16, generator=0)
    for learn in (mixture.fit, mixture.partial_fit):
        with pytest.raises(ValueError, match=r"the whitening of this mixture reach .* dtype=torch.float16 holds"):
            learn(x)
        assert not mixture.fitted
        assert not mixture.running.started


def test_means_that_rounding_moves_are_named():
    """float32 counts in steps of 8 at 10⁸, so that its means miss those of unit deviation by a few of them."""
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += 1e8 + 3
    with pytest.warns(RuntimeWarning, match=r"features \[1\] lie so far from zero .* use dtype=torch.float64"):
        StudentTMixture(1, 3, generator=0).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = StudentTMixture(1, 3, dtype=torch.float64, generator=0).fit(x)
    assert exact.score(x) == pytest.approx(exact.history_[-1], abs=1e-4)
