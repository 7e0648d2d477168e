"""Marginal and conditional distributions: of `MultivariateStudentT`, and of mixtures of every structure."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import MultivariateNormal

from tmixture import MultivariateStudentT, StudentTMixture

from .helpers import STRUCTURES

DOFS = [0.7, 4.0, math.inf]


def student(df, d=4, batch=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batch, d, generator=generator, dtype=torch.float64)
    factor = torch.randn(*batch, d, d, generator=generator, dtype=torch.float64)
    return MultivariateStudentT(df, loc, scale_matrix=factor @ factor.mT + torch.eye(d, dtype=torch.float64))


def mixture_of(structure, dof, d=4, K=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    if structure == "lowrank":
        loadings = torch.randn(K, d, 2, generator=generator, dtype=torch.float64)
        noise = 0.5 + torch.rand(K, d, generator=generator, dtype=torch.float64)
        return StudentTMixture.from_parameters(weights, means, loadings=loadings, noise=noise, dof=dof)
    factor = torch.randn(K, d, d, generator=generator, dtype=torch.float64)
    scales = factor @ factor.mT + torch.eye(d, dtype=torch.float64)
    return StudentTMixture.from_parameters(weights, means, scales, dof=dof, covariance_type=structure)


# ---------------------------------------------------------------- one distribution


@pytest.mark.parametrize("df", DOFS)
def test_marginals_are_scipys(df):
    t, features = student(df), [2, 0]
    x = torch.randn(20, 2, dtype=torch.float64)
    shape = t.scale_matrix[np.ix_(features, features)].numpy()
    expected = stats.multivariate_t(t.loc[features].numpy(), shape, df).logpdf(x.numpy())
    np.testing.assert_allclose(t.marginal(features).log_prob(x).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("df", DOFS)
def test_a_conditional_is_the_joint_over_the_marginal(df):
    """By numerical integration of the joint density over what is not known."""
    t, known = student(df, d=2), 0.8

    def joint(y):
        return float(t.log_prob(torch.tensor([y, known], dtype=torch.float64)).exp())

    total = integrate.quad(joint, -np.inf, np.inf)[0]
    conditional = t.conditional([1], torch.tensor([known], dtype=torch.float64))
    assert conditional.event_shape == (1,)
    for y in (-3.0, 0.1, 5.0):
        density = float(conditional.log_prob(torch.tensor([y], dtype=torch.float64)).exp())
        assert density == pytest.approx(joint(y) / total, rel=1e-6)


@pytest.mark.parametrize("df", DOFS)
@pytest.mark.parametrize(("batch", "sample"), [((), ()), ((), (5,)), ((3,), (3,)), ((3,), (5, 3)), ((3,), (5, 1))])
def test_joint_is_marginal_times_conditional(df, batch, sample):
    t = student(df, batch=batch)
    x = torch.randn(*sample, 4, dtype=torch.float64)
    known, others = [3, 1], [0, 2]  # others come in the order they had
    conditional = t.conditional(known, x[..., known])
    assert conditional.batch_shape == torch.broadcast_shapes(sample, batch)
    product = t.marginal(known).log_prob(x[..., known]) + conditional.log_prob(x[..., others])
    torch.testing.assert_close(product, t.log_prob(x), rtol=1e-10, atol=1e-10)


def test_one_scale_for_many_locations_is_not_copied_wrongly():
    """Parameters that broadcast: K values of df and loc, one matrix."""
    t = MultivariateStudentT(
        torch.tensor([3.0, math.inf]).double(), torch.randn(2, 3).double(), torch.eye(3).double() * 2
    )
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    product = t.marginal([0]).log_prob(x[..., :1]) + t.conditional([0], x[..., :1]).log_prob(x[..., 1:])
    torch.testing.assert_close(product, t.log_prob(x))


def test_the_normal_is_least_squares():
    """Of many draws, the regression on known features is the conditional mean, its residuals' covariance the scale."""
    t = student(math.inf)
    torch.manual_seed(0)
    x = MultivariateNormal(t.loc, t.scale_matrix).sample((400_000,))
    design = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), x[:, [1, 2]]], dim=1)
    solution = torch.linalg.lstsq(design, x[:, [0, 3]])
    values = torch.tensor([0.3, -1.0], dtype=torch.float64)
    conditional = t.conditional([1, 2], values)
    expected = torch.cat([torch.ones(1, dtype=torch.float64), values]) @ solution.solution
    torch.testing.assert_close(conditional.mean, expected, atol=0.02, rtol=0)
    residuals = x[:, [0, 3]] - design @ solution.solution
    torch.testing.assert_close(conditional.covariance_matrix, residuals.T.cov(), atol=0.05, rtol=0)


def test_surprising_values_widen_a_t_and_not_a_normal():
    values = torch.tensor([[0.0], [30.0]], dtype=torch.float64)
    t, normal = (student(df).conditional([0], values).variance for df in (4.0, math.inf))
    assert (t[1] > 10 * t[0]).all()
    torch.testing.assert_close(normal[0], normal[1])


@pytest.mark.parametrize("df", [4.0, math.inf])
def test_conditionals_have_gradients(df):
    t = student(df, d=3)
    values = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    factor, loc = t.scale_tril.clone().requires_grad_(), t.loc.clone().requires_grad_()

    def parameters(values, factor, loc):
        conditional = MultivariateStudentT(df, loc, factor, validate_args=False).conditional([1], values)
        return conditional.loc, conditional.scale_matrix

    assert torch.autograd.gradcheck(parameters, (values, factor, loc))


# ---------------------------------------------------------------- mixtures


@pytest.mark.parametrize("dof", [4.0, math.inf, [2.0, 5.0, math.inf]], ids=str)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_mixtures_are_marginal_times_conditional(structure, dof):
    mixture = mixture_of(structure, dof)
    x = torch.randn(50, 4, dtype=torch.float64)
    known, others = [2, 0, 3], [1]
    marginal = mixture.marginal(known)
    conditional = mixture.conditional(known, x[:, known])
    assert conditional.batch_shape == (50,)
    product = marginal.log_prob(x[:, known]) + conditional.log_prob(x[:, others])
    torch.testing.assert_close(product, mixture.log_prob(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(conditional.mixture_distribution.probs, marginal(x[:, known]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_marginal_keeps_its_structure_and_settings(structure, tmp_path):
    mixture = mixture_of(structure, 4.0)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    marginal = mixture.marginal([0, 1, 3])
    assert marginal.covariance_type == structure
    torch.testing.assert_close(marginal.scales, mixture.scales[:, [0, 1, 3]][:, :, [0, 1, 3]])
    marginal.save(tmp_path / "marginal.safetensors")
    loaded = StudentTMixture.load(tmp_path / "marginal.safetensors")
    x = torch.randn(10, 3, dtype=torch.float64)
    assert torch.equal(loaded.log_prob(x), marginal.log_prob(x))
    assert all(torch.equal(value, before[name]) for name, value in mixture.state_dict().items())


def test_few_features_have_no_low_rank():
    marginal = mixture_of("lowrank", 4.0).marginal([1, 3])
    assert (marginal.covariance_type, marginal.rank) == ("full", None)
    assert marginal.log_prob(torch.zeros(1, 2, dtype=torch.float64)).isfinite()


def test_a_marginal_can_be_fitted_further_and_knows_its_classes():
    x = torch.randn(300, 3)
    mixture = StudentTMixture(2, 3, init=x[:2], component_labels=[1, 0], warm_start=True, generator=0).fit(x)
    marginal = mixture.marginal(torch.tensor([True, False, True]))
    assert marginal.component_labels == [1, 0]
    score = marginal.score(x[:, [0, 2]])
    assert marginal.fit(x[:, [0, 2]]).score(x[:, [0, 2]]) >= score - 1e-6


def test_the_mean_of_a_conditional_is_a_regression():
    """On a bent line, the mean follows the bend, and the spread is that of the noise."""
    torch.manual_seed(0)
    t = 6 * torch.rand(4000, 1) - 3
    x = torch.cat([t, t.sin() + 0.1 * torch.randn(4000, 1)], dim=1)
    mixture = StudentTMixture(12, 2, covariance_type="full", dof=float("inf"), generator=0).fit(x)
    grid = torch.linspace(-2.5, 2.5, 50)[:, None]
    conditional = mixture.conditional([0], grid)
    assert (conditional.mean - grid.sin()).abs().max() < 0.15
    assert 0.05 < float(conditional.variance.sqrt().median()) < 0.2


def test_dtype_and_gradients_of_a_mixtures_conditional():
    mixture = mixture_of("full", 4.0).float()
    values = torch.randn(5, 2, requires_grad=True)
    conditional = mixture.conditional([0, 1], values)
    assert conditional.mean.dtype is torch.float32
    assert conditional.sample((3,)).shape == (3, 5, 2)
    conditional.mean.sum().backward()
    assert values.grad.isfinite().all()
    assert (values.grad != 0).all()
    assert mixture.conditional([0, 1], torch.randn(2, 5, 2)).batch_shape == (2, 5)


@pytest.mark.parametrize("features", [[], [4], [-1], [0, 0], [0.5], "ab", torch.ones(3, dtype=torch.bool), [[0]]])
@pytest.mark.parametrize("what", ["mixture", "distribution"])
def test_features_that_are_none_are_refused(what, features):
    subject = mixture_of("diag", 4.0) if what == "mixture" else student(4.0)
    with pytest.raises(ValueError, match="features must be"):
        subject.marginal(features)
    with pytest.raises(ValueError, match="features must be"):
        subject.conditional(features, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("what", ["mixture", "distribution"])
def test_values_that_do_not_fit_are_refused(what):
    subject = mixture_of("diag", 4.0) if what == "mixture" else student(4.0)
    with pytest.raises(ValueError, match="leave at least one of 4 features"):
        subject.conditional([0, 1, 2, 3], torch.zeros(4))
    with pytest.raises(ValueError, match=r"values must be .* shape \(…, 2\)"):
        subject.conditional([0, 1], torch.zeros(3))
    with pytest.raises(ValueError, match="values must be floating-point"):
        subject.conditional([0, 1], torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="values must be"):
        subject.conditional([0], 1.0)


def test_an_unfitted_mixture_has_neither():
    mixture = StudentTMixture(2, 3)
    with pytest.raises(RuntimeError, match="not fitted"):
        mixture.marginal([0])
    with pytest.raises(RuntimeError, match="not fitted"):
        mixture.conditional([0], torch.zeros(1))
