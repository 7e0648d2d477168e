"""Warnings about a fit: when they come, when not, and on whose line."""

import warnings

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning as SklearnConvergenceWarning

from tmixture import ConvergenceWarning, StudentTMixture, fitting, notices
from tmixture.sklearn import StudentTMixtureClusterer


def rows(n=400, *, heavy=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    if heavy:  # slash-distributed: heavier than any Student-t with ν > 1
        x = x / torch.rand(n, 1, generator=generator, dtype=torch.float64) ** 4
    return x


def warnings_of(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    return [(warning.category, str(warning.message)) for warning in caught]


def test_a_fit_that_ends_early_says_so_at_the_line_that_asked_for_it():
    mixture = StudentTMixture(5, 2, max_iter=2, tol=1e-8, generator=0)
    with pytest.warns(ConvergenceWarning, match="tol=1e-08 in max_iter=2 iterations: raise either") as caught:
        mixture.fit(rows())
    assert [warning.filename for warning in caught] == [__file__]
    assert not mixture.converged_


@pytest.mark.parametrize("settings", [{"max_iter": 500}, {"max_iter": 2, "tol": 0.0}])
def test_no_warning_after_convergence_or_where_iterations_were_asked_for(settings):
    assert warnings_of(lambda: StudentTMixture(2, 2, generator=0, **settings).fit(rows())) == []


def test_a_stream_does_not_warn():
    mixture = StudentTMixture(3, 2, learn_dof="component", max_iter=1, tol=1e-12, generator=0)
    assert warnings_of(lambda: [mixture.partial_fit(batch) for batch in rows().split(40)]) == []


def test_scikit_learn_users_get_its_warning_and_no_other():
    (warning,) = warnings_of(lambda: StudentTMixtureClusterer(5, max_iter=2, random_state=0).fit(rows().numpy()))
    assert warning[0] is SklearnConvergenceWarning


@pytest.mark.parametrize(
    ("heavy", "bounds", "text"),
    [
        (False, (0.5, 5.0), "upper bound 5 .* are Gaussian. This is harmless"),
        (True, (2.0, 50.0), "lower bound 2 .* Look at its rows"),
    ],
)
@pytest.mark.parametrize("learn_dof", ["shared", "component"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degrees_of_freedom_at_a_bound(heavy, bounds, text, learn_dof, dtype):
    mixture = StudentTMixture(1, 2, learn_dof=learn_dof, dof_bounds=bounds, generator=0, max_iter=1000, dtype=dtype)
    with pytest.warns(RuntimeWarning, match=text) as caught:
        mixture.fit(rows(heavy=heavy))
    assert len(caught) == 1


@pytest.mark.parametrize("settings", [{"learn_dof": "component"}, {"dof": 0.5}, {"dof": 200.0}])
def test_no_warning_within_the_bounds_or_of_fixed_degrees_of_freedom(settings):
    generator = torch.Generator().manual_seed(0)
    x, _ = StudentTMixture.from_parameters([1.0], torch.zeros(1, 2), torch.eye(2)[None], dof=4.0).sample(
        1000, generator=generator
    )
    assert warnings_of(lambda: StudentTMixture(1, 2, generator=0, max_iter=1000, **settings).fit(x)) == []


def test_components_that_were_started_anew_are_reported():
    """The last three of the given means are far from all rows, and die."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    means = torch.cat([x[:1], 1e4 + torch.arange(6.0).reshape(3, 2)])
    mixture = StudentTMixture(4, 2, init=means, generator=0)
    with pytest.warns(RuntimeWarning, match=r"components \[1, 2, 3\] .* started anew"):
        mixture.fit(x)
    assert mixture.n_reseeded_ >= 3
    assert float(mixture.means.abs().max()) < 10


def test_a_kind_of_warning_comes_once_and_says_how_often():
    def warned_of():
        with notices.each_once():
            for _ in range(3):
                notices.warn("the same")
            notices.warn("another", UserWarning)

    assert warnings_of(warned_of) == [(RuntimeWarning, "the same (3 times)"), (UserWarning, "another")]


def test_warnings_come_after_an_error_too():
    def fails():
        with notices.each_once():
            notices.warn("first")
            raise ZeroDivisionError

    def caught():
        with pytest.raises(ZeroDivisionError):
            fails()

    assert warnings_of(caught) == [(RuntimeWarning, "first")]


@pytest.mark.parametrize("given", ["init", "responsibilities", "warm_start"])
def test_a_given_start_is_tried_once(monkeypatch, given):
    runs, real = [], fitting.run
    monkeypatch.setattr(fitting, "run", lambda *args, **settings: runs.append(1) or real(*args, **settings))
    x = rows()
    mixture = StudentTMixture(2, 2, n_init=3, init=x[:2] if given == "init" else "kmeans", generator=0)
    mixture.fit(x, responsibilities=torch.arange(400) % 2 if given == "responsibilities" else None)
    if given == "warm_start":
        assert len(runs) == 3
        mixture.warm_start = True
        runs.clear()
        mixture.fit(x)
    assert len(runs) == 1
