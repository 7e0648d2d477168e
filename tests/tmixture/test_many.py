"""Many fits made together are those made one after the other."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch

from tmixture import ManyMixtures, StudentTMixture, fit_many
from tmixture.diagnostics import ConvergenceWarning
from tmixture.many import together

from .helpers import assert_same_parameters

TOGETHER = ("diag", "spherical", "full")


def data_sets(count=6, rows=120, d=3, K=3, spread=1.5, seed=0):
    """Overlapping clusters (B, n, d), about a point of its own for each data set."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(count, K, d)) + 10 * rng.normal(size=(count, 1, d))
    labels = rng.integers(K, size=(count, rows))
    return torch.from_numpy(centres[np.arange(count)[:, None], labels] + rng.normal(size=(count, rows, d)))


def mixture(K=3, d=3, **settings):
    return StudentTMixture(K, d, **{"generator": 0, "dtype": torch.float64, "max_iter": 300, **settings})


def alone(template, data):
    return [copy.deepcopy(template).fit(x) for x in data]


def assert_same_fits(many, singles, rtol=1e-8):
    assert len(many) == len(singles)
    for ours, theirs in zip(many, singles):
        assert_same_parameters(ours, theirs, rtol=rtol)
        assert ours.n_iter_ == theirs.n_iter_
        assert ours.converged_ == theirs.converged_
        np.testing.assert_allclose(ours.history_, theirs.history_, rtol=rtol)


@pytest.fixture
def together_only(monkeypatch):
    """No fit may be made alone."""

    def refuse(self, *args, **settings):
        raise AssertionError("a fit was made alone")

    monkeypatch.setattr(StudentTMixture, "fit", refuse)


@pytest.mark.parametrize("structure", TOGETHER)
@pytest.mark.parametrize("init", ["kmeans", "kmeans++", "given"])
@pytest.mark.parametrize("dof", [4.0, math.inf, "mixed"])
def test_they_are_those_of_single_fits(structure, init, dof, monkeypatch):
    data = data_sets()
    settings = {"dof": [3.0, math.inf, 10.0] if dof == "mixed" else dof, "covariance_type": structure}
    template = mixture(init=data[0, :3] if init == "given" else init, **settings)
    singles = alone(template, data)
    if init != "given":  # whose start is far from most of the data sets, so that components die
        monkeypatch.setattr(StudentTMixture, "fit", None)
    assert_same_fits(fit_many(template, data), singles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [5, 700])
def test_few_and_many_rows(rows, dtype):
    data = data_sets(rows=rows).to(dtype)
    template = mixture(dtype=dtype, reg_covar=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_fits(fit_many(template, data), alone(template, data), rtol=1e-4 if dtype == torch.float32 else 1e-8)


def test_what_single_fits_do_about_strange_data_is_done():
    data = data_sets(count=5)
    data[1, 7] = 1e6  # a stray row
    data[2, :100] = data[2, 0]  # repeated rows, in which a component ends as a spike
    data[3, :, 1] = 2.5  # a constant feature
    data[4, :60] += 1e5  # far apart
    template = mixture(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same_fits(fit_many(template, data), alone(template, data), rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"learn_dof": "component"},
        {"covariance_type": "tied"},
        {"n_init": 3},
        {"init": "random"},
        {"scale_update": "classic"},
        {"warm_start": True},
    ],
    ids=str,
)
def test_whatever_the_settings(settings):
    data = data_sets(count=2)
    template = mixture(**settings)
    if "warm_start" in settings:
        template.fit(data[0])
    assert_same_fits(fit_many(template, data), alone(template, data))


def test_in_blocks(monkeypatch, together_only):
    data, template = data_sets(), mixture()
    whole = fit_many(template, data)
    monkeypatch.setattr(together, "BLOCK_ELEMENTS", 1)
    torch.testing.assert_close(fit_many(template, data).means, whole.means, rtol=1e-10, atol=1e-10)


def test_a_generator_gives_one_seed_to_all(together_only):
    data = data_sets(count=1).expand(3, -1, -1)
    template = mixture(generator=torch.Generator().manual_seed(3))
    many = fit_many(template, data)
    torch.testing.assert_close(many.means[0], many.means[2])
    assert not torch.equal(fit_many(template, data).means, many.means)  # it has gone on


def test_the_sequence():
    data, template = data_sets(), mixture()
    before = copy.deepcopy(template.state_dict())
    many = fit_many(template, data.numpy())
    assert not template.is_fitted
    for name, tensor in template.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert isinstance(many, ManyMixtures)
    assert many.weights.shape == (6, 3)
    assert many.means.shape == (6, 3, 3)
    assert many.dof.shape == (6, 3)
    torch.testing.assert_close(many.weights.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(many[-1].means, many.means[5])
    assert torch.equal(many[1:3].means, many.means[1:3])
    assert [round(m.history_[-1], 12) for m in many] == many.log_likelihood_.numpy().round(12).tolist()
    assert many[2].predict(data[2]).shape == (120,)
    many[2].partial_fit(data[2])
    assert "6 × StudentTMixture" in repr(many)
    with pytest.raises(IndexError):
        many[6]


def test_fits_that_do_not_converge_are_warned_of_once():
    with pytest.warns(ConvergenceWarning, match=r"\(6 times\)") as caught:
        fit_many(mixture(max_iter=2), data_sets())
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3), r"data must have shape \(B, n, 3\)"),
        (torch.zeros(2, 4, 2), r"data must have shape \(B, n, 3\)"),
        (torch.zeros(0, 4, 3), r"data must have shape \(B, n, 3\)"),
        (torch.zeros(2, 2, 3), "2 rows in each data set"),
        (torch.full((2, 4, 3), math.nan), "data"),
    ],
)
def test_clear_errors(data, message):
    with pytest.raises(ValueError, match=message):
        fit_many(mixture(), data)
