"""Densities and algebra of the scale structures, against scipy and plain linear algebra."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import tmixture.density
from tmixture.density import Density, negligible, working_density
from tmixture.scales import STRUCTURES as CLASSES
from tmixture.scales import pairs
from tmixture.scales.cholesky import whitening_of

from . import naive
from .helpers import STRUCTURES, from_model

INF = float("inf")
DOFS = [0.7, 4.0, 150.0, 1e6, INF, (1.0, 30.0, INF)]


def scipy_log_prob(model, x):
    columns = []
    for mean, scale, nu in zip(model.means, model.scales, model.dof):
        law = stats.multivariate_normal(mean, scale) if nu == INF else stats.multivariate_t(mean, scale, nu)
        columns.append(law.logpdf(x).reshape(len(x)))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", DOFS, ids=str)
@pytest.mark.parametrize(
    ("d", "dtype"), [(1, torch.float64), (3, torch.float32), (3, torch.float64), (130, torch.float64)]
)
def test_log_densities_agree_with_scipy(structure, dof, d, dtype):
    if structure == "lowrank" and d == 1:
        pytest.skip("its rank must be smaller than d")
    model = naive.random_model(3, d, structure, dof=dof)
    mixture = from_model(model, structure, dtype=dtype)
    x = torch.as_tensor(3 * np.random.default_rng(5).normal(size=(40, d))).to(dtype)
    expected = scipy_log_prob(model, x.double().numpy())
    # scipy's own lgamma differences lose digits as ν grows.
    rtol = 5e-6 if dtype == torch.float32 else 1e-9
    ours = mixture.component_log_prob(x)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.double(), expected, rtol=rtol)
    joint = expected + np.log(model.weights)
    np.testing.assert_allclose(mixture.log_prob(x).double(), logsumexp(joint, axis=1), rtol=rtol)
    shares = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    np.testing.assert_allclose(mixture(x).double(), shares, rtol=1e-4 if dtype == torch.float32 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_outlier_weights_are_the_conditional_mean_of_the_latent_precision(structure):
    """E[U | x] by numerical integration over u of p(x | u)·p(u)."""
    model = naive.random_model(2, 2, structure, dof=(3.0, INF))
    x = naive.draw(model, 10)
    u = np.linspace(1e-6, 12, 200_001)
    prior = stats.gamma(1.5, scale=1 / 1.5).logpdf(u)
    weights = from_model(model, structure).outlier_weights(torch.as_tensor(x)).numpy()
    for row, weight in zip(x, weights):
        delta = naive.distance(row, model.means[0], model.scales[0])
        posterior = np.exp(np.log(u) - u * delta / 2 + prior)  # d = 2: u^(d/2) exp(−u·δ/2)
        assert weight[0] == pytest.approx((u * posterior).sum() / posterior.sum(), rel=1e-5)
    assert (weights[:, 1] == 1).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_dense_form_survives_the_round_trip(structure):
    model = naive.random_model(3, 4, structure)
    scale = CLASSES[structure].from_dense(torch.as_tensor(model.scales))
    np.testing.assert_allclose(scale.dense(3, 4), model.scales, rtol=1e-12, atol=1e-12)
    half_log_det = np.linalg.slogdet(model.scales)[1] / 2
    np.testing.assert_allclose(scale.half_log_det(4).expand(3), half_log_det, rtol=1e-12)
    variances, precisions = (np.diagonal(m, axis1=1, axis2=2) for m in (model.scales, np.linalg.inv(model.scales)))
    np.testing.assert_allclose(scale.variances(4).expand(3, 4), variances, rtol=1e-12)
    np.testing.assert_allclose(scale.precisions(4).expand(3, 4), precisions, rtol=1e-10)
    unit = CLASSES[structure].diagonal(torch.full((3, 4), 4.0))
    np.testing.assert_allclose(unit.dense(3, 4), 4 * np.eye(4)[None].repeat(3, axis=0), atol=0.401)
    np.testing.assert_allclose(unit.variances(4).expand(3, 4), 4, rtol=1e-6)  # in float32, as asked for


@pytest.mark.parametrize("structure", STRUCTURES)
def test_correlated_noise_has_the_scale_matrix(structure):
    """White noise made of the unit vectors gives columns L with LLᵀ = Σ."""
    model = naive.random_model(3, 4, structure)
    scale = CLASSES[structure].from_dense(torch.as_tensor(model.scales))
    noise = torch.eye(4, dtype=torch.float64).repeat(3, 1)
    rows = scale.correlate(noise, torch.arange(3).repeat_interleave(4)).reshape(3, 4, 4)
    np.testing.assert_allclose(rows.mT @ rows, model.scales, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("structure", ["full", "tied"])
def test_distances_beyond_one_block_of_columns(structure):
    """The triangular factor is applied 128 columns at a time."""
    d = 300
    model = naive.random_model(2, d, structure)
    scale = CLASSES[structure].from_dense(torch.as_tensor(model.scales))
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(6, d)))
    ours = scale.mahalanobis(scale.features(x), torch.as_tensor(model.means))
    expected = [[naive.distance(row, m, s) for m, s in zip(model.means, model.scales)] for row in x.numpy()]
    np.testing.assert_allclose(ours, expected, rtol=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_singular_matrix_is_repaired_with_a_warning(rank):
    basis = torch.randn(4, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    singular = basis @ basis.T - 1e-9 * torch.eye(4, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="a scale matrix was not positive definite"):
        whitening = whitening_of(singular)
    repaired = torch.linalg.inv(whitening.T @ whitening)
    size = float(singular.diagonal().abs().mean())
    assert torch.linalg.eigvalsh(repaired).min() > 0
    assert float((repaired - singular).abs().max()) <= (1e2 if rank == 0 else 1e-3) * size


def test_the_sparse_m_step_of_full_is_the_dense_one():
    """Rows without responsibility are not gathered; a far outlier with a tiny u but its full share of Σ is."""
    model = naive.random_model(3, 20, "full", spread=100.0, dof=3.0)
    x = naive.draw(model, 300)
    x[0] = 1e8
    x[1] = -1e11
    mixture = from_model(model, "full", max_iter=1).fit(torch.as_tensor(x))
    density = torch.as_tensor(naive.joint(x, model))
    r = density.softmax(1).numpy()
    assert (r < 1e-20).mean() > 0.5
    expected = naive.em_step(x, model, "full")
    np.testing.assert_allclose(mixture.means, expected.means, rtol=1e-9)
    np.testing.assert_allclose(mixture.scales, expected.scales, rtol=1e-7)
    single = from_model(model, "full", max_iter=1, dtype=torch.float32).fit(torch.as_tensor(x).float())
    np.testing.assert_allclose(single.scales, expected.scales, rtol=2e-4, atol=2e-4 * np.abs(expected.scales).max())


@pytest.mark.parametrize(("d", "spread"), [(40, 0.3), (100, 0.1), (100, 3.0), (200, 1.0)])
@pytest.mark.parametrize("dof", [4.0, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_that_are_not_completed_belong_to_irrelevant_components(d, spread, dof, dtype):
    """What the E-step takes from distances in parts is what it takes from whole ones; unfinished ones are lower."""
    model = naive.random_model(6, d, "full", dof=dof, spread=spread)
    mixture = from_model(model, "full", dtype=dtype)
    density = Density(mixture.snapshot(), dtype)
    features = density.features(torch.as_tensor(naive.draw(model, 400)).to(dtype))
    whole, partial = density.mahalanobis(features), density.relevant(features).distances
    rounding = 1e-4 if dtype == torch.float32 else 1e-9
    assert (partial <= whole * (1 + rounding)).all()
    expected, ours = density.joint(whole), density.joint(partial)
    np.testing.assert_allclose(ours.logsumexp(1), expected.logsumexp(1), rtol=rounding / 10)
    shares = expected.softmax(1)
    counted = shares > negligible(dtype)
    np.testing.assert_allclose(partial[counted], whole[counted], rtol=rounding)
    assert (ours.softmax(1)[~counted] <= 2 * negligible(dtype)).all()
    if spread == 3.0:
        assert (partial < 0.9 * whole).double().mean() > 0.5  # most of the work was saved


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_numbers_beyond_float32_are_worked_on_in_float64(structure, apart):
    model = naive.random_model(2, 3, structure)
    model.scales[:] *= 1e-32
    model.means[:] *= 1e12
    mixture = from_model(model, structure, dtype=torch.float64)
    density = working_density(mixture.snapshot(), torch.float32, apart=apart)
    assert density.dtype == torch.float64
    assert density.distances.terms.isfinite().all()


@pytest.fixture
def many_features(monkeypatch):
    """Few features pass for many, where far components are treated apart."""
    monkeypatch.setattr(tmixture.density, "FEW_FEATURES", 0)


@pytest.mark.parametrize(("d", "dtype"), [(32, torch.float64), (33, torch.float32)])
def test_few_features_are_worked_on_in_float64_where_float32_would_treat_components_apart(d, dtype):
    model = naive.random_model(3, d, "diag")
    near, far = (from_model(model, "diag", dtype=torch.float32).snapshot() for _ in range(2))
    far.means[0] += 30
    assert working_density(near, torch.float32, apart=True).dtype == torch.float32
    density = working_density(far, torch.float32, apart=True)
    assert density.dtype == dtype
    assert (len(density.apart) > 0) == (dtype == torch.float32)


@pytest.mark.usefixtures("many_features")
@pytest.mark.parametrize("sharpness", [3.0, 30.0, 300.0])
@pytest.mark.parametrize("n_tight", [1, 4])
@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
def test_far_components_cost_no_float64(covariance_type, n_tight, sharpness):
    """Tight components far from the others are measured about their own means, in float32 and as well as in float64."""
    model = naive.random_model(4, 12, covariance_type)
    model.scales[:n_tight] /= sharpness**2
    model.means[0] += 5
    x = naive.draw(model, 500)
    mixture = from_model(model, covariance_type, dtype=torch.float32, max_iter=1)
    assert (
        working_density(mixture.snapshot(), torch.float32).dtype == torch.float64
    )  # what one matrix product for all components would take
    assert working_density(mixture.snapshot(), torch.float32, apart=True).dtype == torch.float32
    expected = naive.em_step(x, model, covariance_type)
    mixture.fit(torch.as_tensor(x).float())
    np.testing.assert_allclose(mixture.means, expected.means, rtol=1e-5, atol=1e-6)
    ours = mixture.scales.diagonal(dim1=1, dim2=2)
    np.testing.assert_allclose(ours, expected.scales.diagonal(axis1=1, axis2=2), rtol=5e-6 * max(1, sharpness / 10))


@pytest.mark.usefixtures("many_features")
@pytest.mark.parametrize("sharpness", [1.0, 30.0])
@pytest.mark.parametrize("share", [0.005, 0.5])
@pytest.mark.parametrize("covariance_type", ["diag", "spherical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_sparse_and_of_dense_responsibilities(dtype, covariance_type, share, sharpness, monkeypatch):
    """In high dimension a row concerns few components, and its pairs are summed; both ways give the plain sums."""
    model = naive.random_model(70, 6, covariance_type)
    model.scales[::2] /= (sharpness * (1e3 if dtype == torch.float64 else 1)) ** 2  # to be apart in float64, too
    density = working_density(from_model(model, covariance_type, dtype=dtype).snapshot(), dtype, apart=True)
    assert len(density.apart) > 0
    features, means = density.features(torch.as_tensor(naive.draw(model, 300), dtype=dtype)), density.means
    weight = torch.rand(300, 70, dtype=dtype) * (torch.rand(300, 70) < share)
    if share < 1 / pairs.SPARSE[dtype]:
        monkeypatch.setattr(pairs, "cross_moments", None)  # no matrix product is needed
    ours = density.scale.moments(features, weight, means, density.apart)
    assert ours.dtype == torch.float64
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for k, reference in enumerate(density.reference):
        y = density.scale.features(features[:, :6] - reference).double()
        torch.testing.assert_close(ours[k], weight[:, k].double() @ y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("share", [0.02, 1.0])
def test_weighted_sums_of_many_rows_are_as_exact_as_their_rows(share):
    """One component with all the rows: float32 alone would be off by 1e-5 and more."""
    weight = torch.zeros(200_000, 10)
    weight[:, 3] = 1.0
    weight[:, 7] = torch.rand(len(weight)) * (torch.rand(len(weight)) < share)
    weight[5:7, 9] = 2.0
    x = 1 + torch.rand(len(weight), 3)
    expected = weight.double().T @ x.double()
    torch.testing.assert_close(pairs.weighted_sums(weight, x), expected, rtol=1e-6, atol=0)
    assert float(pairs.weighted_sums(weight[:0], x[:0]).abs().sum()) == 0


@pytest.mark.usefixtures("many_features")
@pytest.mark.parametrize("sharpness", [30.0, 1000.0])
@pytest.mark.parametrize("dof", [4.0, INF])
def test_far_components_are_corrected_where_it_matters(dof, sharpness):
    """Rows between tight, far components get the responsibilities that float64 gives them."""
    model = naive.random_model(5, 30, "diag", dof=dof)
    model.scales[:] /= sharpness**2
    model.means[1] = model.means[0] + 3 * model.scales[0].diagonal() ** 0.5 / 30**0.5  # two that share rows
    rows = torch.as_tensor(naive.draw(model, 400))
    parameters = from_model(model, "diag", dtype=torch.float64).snapshot()
    exact, single = Density(parameters, torch.float64), working_density(parameters, torch.float32, apart=True)
    assert single.dtype == torch.float32
    assert len(single.apart) > 0
    expected = exact.relevant(exact.features(rows)).joint.softmax(1)
    distances, _, joint = single.relevant(single.features(rows))
    possible = joint > joint.amax(1, keepdim=True) + np.log(negligible(torch.float32))
    torch.testing.assert_close(joint[possible], single.joint(distances)[possible])
    ours = joint.softmax(1)
    assert ((expected > 0.01) & (expected < 0.99)).any()  # some rows are shared
    np.testing.assert_allclose(ours, expected, atol=3e-7 * sharpness)
