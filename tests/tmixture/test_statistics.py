"""The laws of the sufficient statistics: they add, move, average, blend and split as sums over rows do."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture, SufficientStatistics, em
from tmixture.data.chunks import Chunk
from tmixture.density import Density
from tmixture.maximization import Rules, maximization

from . import naive
from .helpers import STRUCTURES, from_model, of

RULES = Rules("px", "component", (0.5, 200.0), torch.full((1,), 1e-9, dtype=torch.float64))
FIXED_DOF = replace(RULES, learn_dof=False)


@pytest.fixture(params=STRUCTURES)
def case(request):
    """(scale, x, sample weights, parameters)."""
    x, model = naive.heavy_tailed(K=3, d=4, N=60, structure=request.param)
    weight = np.random.default_rng(0).uniform(0, 2, len(x))
    parameters = from_model(model, request.param).snapshot()
    return parameters.scale, torch.as_tensor(x), torch.as_tensor(weight), parameters


def expectation(parameters, *chunks):
    return em.expectation([Chunk(*chunk) for chunk in chunks], parameters, RULES, torch.float64)


def moments(scale, x, responsibilities, weighted, means, reference):
    """First and second moments about `reference` by the definition, in the structure's own form."""
    centred = x[:, None] - reference  # (n, K, d)
    first = (weighted[:, :, None] * centred).sum(0)
    outer = torch.einsum("nk,nki,nkj->kij", weighted, centred, centred)
    if scale.covariance_type == "lowrank":
        return first, moments_with_factors(scale, x - means[:, None], responsibilities, weighted, outer, centred)
    form = {
        "tied": outer.sum(0),
        "tied_diag": outer.sum(0).diagonal(),
        "tied_spherical": outer.sum(0).diagonal().sum(0, keepdim=True),
        "diag": outer.diagonal(dim1=1, dim2=2),
        "spherical": outer.diagonal(dim1=1, dim2=2).sum(1),
    }
    return first, form.get(scale.covariance_type, outer)  # full where the structure asks for nothing less


def moments_with_factors(scale, deviations, responsibilities, weighted, outer, centred):
    """[[x², x·fᵀ], [f, f·fᵀ]] with f normal about ΛᵀΣ⁻¹(x − μ) with covariance (I − ΛᵀΣ⁻¹Λ)/u."""
    K, d, q = scale.loadings.shape
    regression = scale.loadings.mT @ torch.linalg.inv(scale.dense(K, d))
    f = torch.einsum("kqd,knd->nkq", regression, deviations)
    covariance = torch.eye(q, dtype=f.dtype) - regression @ scale.loadings
    ff = torch.einsum("nk,nkp,nkq->kpq", weighted, f, f) + responsibilities.sum(0)[:, None, None] * covariance
    xf = torch.einsum("nk,nkd,nkq->kdq", weighted, centred, f)
    left = torch.cat([outer.diagonal(dim1=1, dim2=2), (weighted[:, :, None] * f).sum(0)], dim=1)
    return torch.cat([left[:, :, None], torch.cat([xf, ff], dim=1)], dim=2)


def assert_equal(one, other, rtol=1e-11):
    for name, tensor in one.tensors().items():
        expected = other.tensors()[name]
        np.testing.assert_allclose(tensor, expected, rtol=rtol, atol=rtol * float(expected.abs().max()), err_msg=name)


def test_they_are_the_sums_of_their_definition(case):
    scale, x, weight, parameters = case
    statistics = expectation(parameters, (x, weight))
    model = naive.Model(
        parameters.weights.numpy(),
        parameters.means.numpy(),
        parameters.scale.dense(3, 4).numpy(),
        parameters.dof.numpy(),
    )
    logs = torch.as_tensor(naive.joint(x.numpy(), model))
    r = logs.softmax(1) * weight[:, None]
    delta = [[naive.distance(row, m, s) for m, s in zip(model.means, model.scales)] for row in x.numpy()]
    half, rate = (parameters.dof + 4) / 2, (parameters.dof + torch.tensor(delta, dtype=torch.float64)) / 2
    first, scatter = moments(scale, x, r, r * half / rate, parameters.means, statistics.reference)
    expected = SufficientStatistics(
        responsibility=r.sum(0),
        mass=(r * half / rate).sum(0),
        first=first,
        scatter=scatter,
        log_mass=(r * (torch.digamma(half) - rate.log())).sum(0),
        log_likelihood=weight @ logs.logsumexp(1),
        weight=weight.sum(),
        rows=torch.tensor(60.0),
        reference=statistics.reference,
    )
    assert_equal(statistics, expected, rtol=1e-10)


def test_they_add_over_chunks(case):
    scale, x, weight, parameters = case
    whole = expectation(parameters, (x, weight))
    parts = [expectation(parameters, (x[a:b], weight[a:b])) for a, b in ((0, 1), (1, 30), (30, 60))]
    added = SufficientStatistics.zeros(scale, whole.reference)
    for total, *terms in zip(added.sums(), *(part.sums() for part in parts)):
        for term in terms:
            total += term
    assert_equal(added, whole)
    assert_equal(expectation(parameters, (x[:1], weight[:1]), (x[1:], weight[1:])), whole)


def test_moving_the_reference_is_recomputing_about_it(case):
    scale, x, weight, parameters = case
    statistics = expectation(parameters, (x, weight))
    reference = torch.as_tensor(np.random.default_rng(1).normal(size=(3, 4)) * 10)
    density = Density(parameters, torch.float64)
    distances = density.mahalanobis(density.features(x))
    joint = density.log_weights + density.log_prob(distances)
    r = joint.softmax(1) * weight[:, None]
    weighted = r * density.outlier_weights(distances)
    first, scatter = moments(scale, x, r, weighted, parameters.means, reference)
    moved = statistics.about(scale, reference)
    np.testing.assert_allclose(moved.first, first, rtol=1e-9)
    np.testing.assert_allclose(moved.scatter, scatter, rtol=1e-9)
    assert_equal(moved.about(scale, statistics.reference), statistics, rtol=1e-9)


def test_a_blend_of_averages_is_the_average_of_the_union(case):
    """A share of the rows as the rate: what makes streaming with 1/t steps the full batch."""
    _, x, weight, parameters = case
    whole = expectation(parameters, (x, weight))
    head, tail = (expectation(parameters, (x[rows], weight[rows])) for rows in (slice(0, 20), slice(20, 60)))
    rate = float(tail.weight / whole.weight)
    blended = head.per_unit_weight().blend(tail.per_unit_weight(), rate)
    assert_equal(blended, whole.per_unit_weight())
    assert float(blended.weight) == pytest.approx(1)
    # Averages give the same parameters as sums.
    one, other = (maximization(s, parameters, RULES) for s in (blended, whole))
    for name, tensor in one.tensors().items():
        np.testing.assert_allclose(tensor, other.tensors()[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_split_components_share_the_sums_of_their_source(case):
    scale, x, weight, parameters = case
    statistics = expectation(parameters, (x, weight))
    centre = statistics.reference + statistics.first / statistics.mass[:, None]
    centred = statistics.about(scale, centre)
    means = centre[[1, 1, 2]] + torch.tensor([[5.0], [0.0], [0.0]])
    split = centred.take(scale, torch.tensor([1, 1, 2]), means)
    for name in ("responsibility", "mass", "log_mass"):
        before, after = getattr(centred, name), getattr(split, name)
        np.testing.assert_allclose(after, [before[1] / 2, before[1] / 2, before[2]], err_msg=name)
    estimated, unsplit = (maximization(s, parameters, FIXED_DOF) for s in (split, centred))
    np.testing.assert_allclose(estimated.means, means, rtol=1e-10)
    if scale.per_component:
        dense, source = estimated.scale.dense(3, 4), unsplit.scale.dense(3, 4)
        np.testing.assert_allclose(dense, source[[1, 1, 2]], rtol=1e-6, atol=1e-9)


def test_components_without_mass_keep_their_mean_and_scale(case):
    scale, x, weight, parameters = case
    far = parameters.means.clone()
    far[2] = 1e4
    gaussian = type(parameters)(
        parameters.weights, far, parameters.scale, torch.full_like(parameters.dof, float("inf"))
    )
    statistics = em.expectation([Chunk(x, weight)], gaussian, FIXED_DOF, torch.float64)
    assert float(statistics.mass[2]) == 0
    after = maximization(statistics, gaussian, FIXED_DOF)
    assert after.means[2].tolist() == [1e4] * 4
    assert float(after.weights[2]) < 1e-30
    if scale.per_component:
        np.testing.assert_allclose(after.scale.dense(3, 4)[2], parameters.scale.dense(3, 4)[2], rtol=1e-12, atol=1e-12)
    assert all(tensor.isfinite().all() for name, tensor in after.tensors().items() if name != "dof")


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", [3.0, float("inf")])
def test_expected_statistics_are_those_of_a_large_sample(structure, dof):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    scales = factor @ factor.mT + torch.eye(3)
    means = torch.tensor([[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    mixture = StudentTMixture.from_parameters([0.3, 0.7], means.double(), scales, dof=dof, **of(structure))
    parameters = mixture.snapshot()
    expected = SufficientStatistics.expected(parameters, 1.0)
    x, _ = mixture.sample(200_000, generator=generator)
    seen = em.expectation([Chunk(x)], parameters, RULES, torch.float64).about(parameters.scale, parameters.means)
    seen = seen.per_unit_weight()
    for name in ("responsibility", "mass", "first", "scatter", "log_mass"):
        torch.testing.assert_close(getattr(seen, name), getattr(expected, name), atol=0.05, rtol=0.02)
    again = maximization(expected, parameters, FIXED_DOF)
    torch.testing.assert_close(again.means, parameters.means)
    torch.testing.assert_close(again.scale.dense(2, 3), parameters.scale.dense(2, 3))


def test_a_stream_goes_on_from_given_parameters():
    generator = torch.Generator().manual_seed(1)
    means = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    truth = StudentTMixture.from_parameters([0.5, 0.5], means, torch.eye(2).repeat(2, 1, 1))
    given = StudentTMixture.from_parameters(truth.weights, truth.means + 0.5, truth.scales * 1.5)
    before = given.means.clone()
    given.partial_fit(truth.sample(4, generator=generator)[0])
    assert 0 < float((given.means - before).abs().max()) < 0.5
    for _ in range(300):
        given.partial_fit(truth.sample(20, generator=generator)[0])
    torch.testing.assert_close(given.means, truth.means, atol=0.15, rtol=0)
