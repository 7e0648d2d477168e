"""How different components and mixtures are: closed forms of Gaussians, and integrals."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from tmixture import DirectionalMixture, StudentTMixture, component_divergence, mixture_divergence

from . import naive
from .helpers import STRUCTURES, from_model


def gaussian_jeffreys(one, other):
    (m, S), (n, R), d = one, other, len(one[0])
    inverse = np.linalg.inv(S), np.linalg.inv(R)
    difference = m - n
    return (np.trace(inverse[1] @ S + inverse[0] @ R) - 2 * d + difference @ (inverse[0] + inverse[1]) @ difference) / 2


@pytest.mark.parametrize("structure", STRUCTURES)
def test_of_gaussian_components_it_is_the_closed_form(structure):
    model = naive.random_model(3, 3, structure, dof=math.inf, spread=1.0)
    mixture = from_model(model, structure)
    value, error = component_divergence(mixture, n=40_000, generator=0)
    scales = mixture.scales.numpy()
    components = list(zip(model.means, scales))
    expected = np.array([[gaussian_jeffreys(one, other) for other in components] for one in components])
    assert (np.abs(value.numpy() - expected) <= 4.5 * error.numpy() + 1e-9).all()
    assert torch.equal(value, value.T)
    assert (value.diagonal() == 0).all()
    assert (error.numpy() < 0.05 * expected + 1e-9).all()


def test_of_student_t_components_it_is_the_integral():
    mixture = StudentTMixture.from_parameters(
        [0.5, 0.5], torch.tensor([[0.0], [2.0]]), torch.tensor([[[1.0]], [[4.0]]]), dof=[3.0, 8.0]
    )
    p, q = stats.t(3, 0, 1).logpdf, stats.t(8, 2, 2).logpdf
    expected = integrate.quad(lambda x: (math.exp(p(x)) - math.exp(q(x))) * (p(x) - q(x)), -300, 300, limit=500)[0]
    value, error = component_divergence(mixture, n=50_000, generator=0)
    assert abs(float(value[0, 1]) - expected) < 4 * float(error[0, 1])
    assert float(error[0, 1]) < 0.03 * expected


def test_of_mixtures_it_is_the_integral():
    one = StudentTMixture.from_parameters([0.3, 0.7], torch.tensor([[0.0], [4.0]]), torch.ones(2, 1, 1), dof=4.0)
    other = StudentTMixture.from_parameters([1.0], torch.tensor([[1.0]]), torch.tensor([[[2.25]]]), dof=3.0)

    def p(x):
        return 0.3 * stats.t(4, 0).pdf(x) + 0.7 * stats.t(4, 4).pdf(x)

    def entropy_of_mean(x):
        a, b = p(x), stats.t(3, 1, 1.5).pdf(x)
        m = (a + b) / 2
        return (a * math.log(a / m) + b * math.log(b / m)) / 2

    expected = integrate.quad(entropy_of_mean, -200, 200, limit=500)[0]
    value, error = mixture_divergence(one, other, n=50_000, generator=0)
    assert abs(float(value) - expected) < 4 * float(error)
    assert float(error) < 0.02 * expected


def test_of_the_same_density_it_is_zero_and_of_disjoint_ones_log_two():
    model = naive.random_model(3, 2, "full")
    mixture = from_model(model, "full")
    again = from_model(model, "full").reorder([2, 0, 1])
    assert float(mixture_divergence(mixture, again, generator=0).value) == pytest.approx(0, abs=1e-9)
    far = StudentTMixture.from_parameters([1.0], torch.full((1, 2), 1e6), torch.eye(2)[None], dof=math.inf)
    assert float(mixture_divergence(mixture, far, generator=0).value) == pytest.approx(math.log(2), abs=1e-6)


def test_of_directions_it_is_told_too():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([4.0, 0.0, 0.0, 0.0])
    one, other = (
        DirectionalMixture(2, 4, family=family, generator=0).fit(x) for family in ("von_mises_fisher", "cauchy")
    )
    assert float(mixture_divergence(one, one, generator=0).value) == pytest.approx(0, abs=1e-9)
    assert 0 < float(mixture_divergence(one, other, generator=0).value) < 0.2
    with pytest.raises(ValueError, match="on the sphere cannot be compared"):
        mixture_divergence(one, StudentTMixture(2, 4, generator=0).fit(x))


def test_a_seed_gives_the_same_and_points_come_from_the_components_asked_for():
    mixture = from_model(naive.random_model(3, 2, "diag", spread=50.0), "diag")
    one, other = (component_divergence(mixture, n=100, generator=3).value for _ in range(2))
    assert torch.equal(one, other)
    asked = torch.tensor([2, 0, 0, 1, 2])
    assert torch.equal(mixture.predict(mixture.sample_of(asked, generator=0)), asked)


def test_what_does_not_fit_is_refused():
    mixture = from_model(naive.random_model(2, 2, "diag"), "diag")
    with pytest.raises(RuntimeError, match="not fitted yet"):
        component_divergence(StudentTMixture(2, 2))
    with pytest.raises(ValueError, match="other has 3 features, but one has 2"):
        mixture_divergence(mixture, from_model(naive.random_model(2, 3, "diag"), "diag"))
    with pytest.raises(ValueError, match="n must be a positive integer"):
        mixture_divergence(mixture, mixture, n=0)
