"""Distribution functions and their inverses in one dimension."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

from tmixture import MultivariateStudentT, StudentTMixture

from .helpers import STRUCTURES, of

X = torch.linspace(-30, 30, 121, dtype=torch.float64)[:, None]
DOF = [1.5, 4.0, 30.0, math.inf]


def student(nu, loc, scale):
    return stats.norm(loc, scale) if math.isinf(nu) else stats.t(nu, loc, scale)


def mixture_of(dtype=torch.float64):
    weights, means = (
        torch.tensor([0.2, 0.3, 0.4, 0.1], dtype=torch.float64),
        torch.tensor([[-4.0], [0.0], [3.0], [20.0]]),
    )
    variances = torch.tensor([0.5, 1.0, 4.0, 9.0], dtype=torch.float64)[:, None, None]
    return StudentTMixture.from_parameters(weights, means, variances, dof=DOF, dtype=dtype, covariance_type="diag")


def expected_cdf(x):
    parts = zip([0.2, 0.3, 0.4, 0.1], DOF, [-4, 0, 3, 20], [0.5**0.5, 1, 2, 3])
    return sum(w * student(nu, loc, scale).cdf(x) for w, nu, loc, scale in parts)


@pytest.mark.parametrize("nu", DOF)
def test_of_a_distribution_they_are_those_of_scipy(nu):
    t = MultivariateStudentT(nu, torch.tensor([1.0]).double(), torch.tensor([[2.0]]).double())
    theirs = student(nu, 1, 2)
    np.testing.assert_allclose(t.cdf(X), theirs.cdf(X[:, 0]), rtol=1e-10)
    p = torch.tensor([1e-9, 0.01, 0.3, 0.5, 0.999]).double()
    np.testing.assert_allclose(t.icdf(p)[:, 0], theirs.ppf(p), rtol=1e-8)
    torch.testing.assert_close(t.cdf(t.icdf(p)), p, rtol=1e-8, atol=0)


def test_of_a_distribution_they_have_batches_and_gradients():
    t = MultivariateStudentT(torch.tensor([3.0, 5.0]).double(), torch.zeros(2, 1).double(), torch.eye(1).double())
    assert t.cdf(torch.zeros(7, 2, 1).double()).shape == (7, 2)
    assert t.icdf(torch.full((7, 2), 0.3).double()).shape == (7, 2, 1)
    x = torch.tensor([[0.3], [-2.0]]).double().requires_grad_()
    t.cdf(x).sum().backward()
    torch.testing.assert_close(x.grad[:, 0], t.log_prob(x).exp().detach())
    p = torch.tensor([0.3, 0.9]).double().requires_grad_()
    t.icdf(p).sum().backward()
    torch.testing.assert_close(p.grad, 1 / t.log_prob(t.icdf(p)).exp().detach())


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_of_a_mixture_they_add_up(dtype, rtol):
    mixture = mixture_of(dtype)
    np.testing.assert_allclose(mixture.cdf(X.to(dtype)), expected_cdf(X[:, 0].numpy()), rtol=rtol, atol=rtol)
    p = torch.tensor([1e-6, 0.2, 0.5, 0.95, 0.9999], dtype=dtype)
    np.testing.assert_allclose(expected_cdf(mixture.icdf(p)[:, 0].double().numpy()), p, rtol=10 * rtol)
    np.testing.assert_allclose(mixture.cdf(X.numpy()), mixture.cdf(X), rtol=1e-6)  # data of any kind


def test_of_a_mixture_they_have_gradients():
    mixture = mixture_of()
    x = X[::10].clone().requires_grad_()
    mixture.cdf(x).sum().backward()
    torch.testing.assert_close(x.grad[:, 0], mixture.log_prob(x).exp().detach())
    p = torch.tensor([0.1, 0.5, 0.9]).double().requires_grad_()
    mixture.icdf(p).sum().backward()
    step = 1e-6
    change = (mixture.icdf(p.detach() + step) - mixture.icdf(p.detach() - step))[:, 0] / (2 * step)
    torch.testing.assert_close(p.grad, change, rtol=1e-5, atol=0)


@pytest.mark.parametrize("structure", [structure for structure in STRUCTURES if structure != "lowrank"])
def test_ranks_of_the_data_are_uniform(structure):
    x = torch.cat([torch.randn(400, 1), 5 + torch.randn(400, 1)])
    mixture = StudentTMixture(2, 1, dof=math.inf, generator=0, **of(structure)).fit(x)
    assert stats.kstest(mixture.cdf(x).numpy(), "uniform").pvalue > 0.01


def test_of_normals_the_divergence_is_registered():
    locs, scales = torch.randn(2, 3), torch.tensor([1.0, 2.0])[:, None, None] * torch.eye(3)
    one, other = (MultivariateStudentT(math.inf, loc, scale_matrix=scale) for loc, scale in zip(locs, scales))
    normals = [MultivariateNormal(loc, scale) for loc, scale in zip(locs, scales)]
    torch.testing.assert_close(kl_divergence(one, other), kl_divergence(*normals))
    with pytest.raises(NotImplementedError, match="no closed form unless df is infinite"):
        kl_divergence(one, MultivariateStudentT(4.0, locs[0], scale_matrix=scales[0]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="cdf is for mixtures of one feature, but n_features=2"):
        StudentTMixture(2, 2, generator=0).fit(torch.randn(50, 2)).icdf(torch.tensor([0.5]))
    with pytest.raises(NotImplementedError, match="cdf is for one dimension, but there are 2"):
        MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2)).cdf(torch.zeros(2))
    for wrong in (torch.tensor([0.0]), torch.tensor([1]), torch.tensor([[0.5]])):
        with pytest.raises(ValueError, match="p must be probabilities"):
            mixture_of().icdf(wrong)
    with pytest.raises(ValueError, match="component must be integers"):
        mixture_of().sample_of(torch.tensor([4]))
