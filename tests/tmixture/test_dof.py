"""The degrees-of-freedom update against scipy's root finder, and its behaviour where there is no root."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import digamma
from scipy.stats import gamma

from tmixture.dof import expected_log_correction, solve_dof

from . import naive


@settings(max_examples=100, deadline=None)
@given(nu=st.floats(0.5, 200), slack=st.floats(1.01, 5))
def test_the_root_is_that_of_brentq(nu, slack):
    constant = digamma(nu / 2) - math.log(nu / 2)
    bounds = (nu / slack, nu * slack)
    expected = brentq(lambda v: math.log(v / 2) - digamma(v / 2) + constant, *bounds, xtol=1e-14, rtol=1e-14)
    root = float(solve_dof(torch.tensor(constant, dtype=torch.float64), bounds))
    assert root == pytest.approx(expected, rel=1e-9)
    assert root == pytest.approx(nu, rel=1e-9)


def test_many_equations_at_once():
    nu = np.geomspace(1e-3, 1e5, 60)
    constant = torch.as_tensor(digamma(nu / 2) - np.log(nu / 2)).reshape(6, 10)
    roots = solve_dof(constant, (1e-4, 1e6))
    assert roots.shape == (6, 10)
    np.testing.assert_allclose(roots.flatten(), nu, rtol=1e-8)


@pytest.mark.parametrize("nu", [0.01, 39.9, 40.1, 1e4, 1e9, 1e16, 1e30])
def test_the_root_keeps_its_digits_however_large_it_is(nu):
    with mpmath.workdps(80):
        constant = float(mpmath.digamma(mpmath.mpf(nu) / 2) - mpmath.log(mpmath.mpf(nu) / 2))
    root = float(solve_dof(torch.tensor(constant, dtype=torch.float64), (1e-3, 1e40)))
    assert root == pytest.approx(nu, rel=1e-12)


@pytest.mark.parametrize(("constant", "bound"), [(0.0, 200.0), (3.0, 200.0), (-4.0, 0.5), (-1e9, 0.5)])
def test_without_a_root_the_likelihood_is_highest_at_a_bound(constant, bound):
    """The constant is positive for tails lighter than any t, very negative for tails heavier than the lower bound."""
    root = float(solve_dof(torch.tensor(constant, dtype=torch.float64), (0.5, 200.0)))
    assert root == pytest.approx(bound, rel=1e-12)
    assert naive.dof_root(constant, (0.5, 200.0)) == bound


@pytest.mark.parametrize("nu", [0.7, 4.0, 60.0])
@pytest.mark.parametrize("d", [1, 8])
def test_the_expected_log_precision(nu, d):
    """E[log U | x] = log E[U | x] + correction, with U | x ~ Gamma((ν+d)/2, (ν+δ)/2), by quadrature."""
    delta = 3.0
    posterior = gamma((nu + d) / 2, scale=2 / (nu + delta))
    expected, _ = quad(lambda v: v * posterior.pdf(math.exp(v)) * math.exp(v), -60, 8, limit=500, points=[-5, 0, 2])
    correction = float(expected_log_correction(torch.tensor(nu, dtype=torch.float64), d))
    assert math.log((nu + d) / (nu + delta)) + correction == pytest.approx(expected, abs=1e-6)


def test_a_gaussian_component_has_a_certain_precision():
    correction = expected_log_correction(torch.tensor([math.inf, 1e12], dtype=torch.float64), 5)
    assert float(correction[0]) == 0
    assert float(correction[1]) == pytest.approx(0, abs=1e-11)
