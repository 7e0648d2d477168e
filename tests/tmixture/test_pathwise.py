"""Random rows that move with the parameters."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tmixture import StudentTMixture
from tmixture.pathwise import scores

from . import naive
from .helpers import STRUCTURES, from_model


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", [4.0, math.inf])
def test_scores_are_uniform_and_independent(structure, dof):
    mixture = from_model(naive.random_model(3, 3, structure, dof=dof), structure)
    s = scores(mixture.snapshot(), mixture.sample(4000, generator=0)[0]).numpy()
    for j in range(3):
        assert stats.kstest(s[:, j], "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(s.T) - np.eye(3)).max() < 0.05
    assert np.abs(np.corrcoef((s.T - 0.5) ** 2) - np.eye(3)).max() < 0.06


def test_scores_are_conditional_distribution_functions():
    mixture = from_model(naive.random_model(2, 3, "full", dof=5.0), "full")
    x = mixture.sample(20, generator=0)[0]
    s = scores(mixture.snapshot(), x)
    torch.testing.assert_close(s[:, 0], mixture.marginal([0]).cdf(x[:, :1]))
    last = mixture.conditional([0, 1], x[:, :2])
    components, weights = last.component_distribution, last.mixture_distribution.probs
    expected = (weights * components.cdf(x[:, None, 2:])).sum(1)
    torch.testing.assert_close(s[:, 2], expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_their_gradients_are_those_of_expectations(structure):
    """d/dθ E[f(x)] for f = x and x²: E[x] = Σ π μ, and E[x²] = Σ π (μ² + ν/(ν − 2)·σ²)."""
    model = naive.random_model(2, 2, structure, dof=12.0, spread=1.0)
    mixture = from_model(model, structure).train_by_gradients()
    parameters = list(mixture.parameters())
    x = mixture.rsample(60_000, generator=0)
    variances = mixture.scales.diagonal(dim1=1, dim2=2) * mixture.variance_factors[:, None].detach()
    weights = mixture.weights[:, None]
    for drawn, true in (
        (x.sum(1).mean(), (weights * mixture.means).sum()),
        (x.square().sum(1).mean(), (weights * (mixture.means.square() + variances)).sum()),
    ):
        found, expected = (
            torch.autograd.grad(f, parameters, retain_graph=True, allow_unused=True) for f in (drawn, true)
        )
        for one, other in zip(found, expected):
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=0.08, atol=0.08)


def test_they_are_the_rows_of_sample_and_move_as_the_parameters_do():
    mixture = from_model(naive.random_model(3, 2, "full", dof=6.0), "full").train_by_gradients()
    x = mixture.rsample(30, generator=5)
    torch.testing.assert_close(x.detach(), mixture.sample(30, generator=5)[0])
    before = scores(mixture.snapshot(), x).detach()
    means = dict(mixture.named_parameters())["means"]
    (gradient,) = torch.autograd.grad(x[7, 1], means)
    step = 1e-5
    with torch.no_grad():
        means += step * gradient
    moved = x.detach().clone()
    for _ in range(50):  # where the scores are what they were
        s = scores(mixture.snapshot(), moved.requires_grad_())
        rows = [torch.autograd.grad(part.sum(), moved, retain_graph=True)[0] for part in s.unbind(1)]
        correction = torch.linalg.solve(torch.stack(rows, 1), (s - before)[:, :, None])[:, :, 0]
        moved = (moved - correction).detach()
    change = float((moved - x.detach())[7, 1]) / step
    assert change == pytest.approx(float(gradient.square().sum()), rel=1e-3)


def test_without_trained_parameters_they_carry_no_gradient():
    mixture = StudentTMixture(2, 2, generator=0).fit(torch.randn(100, 2))
    assert not mixture.rsample(5, generator=0).requires_grad
