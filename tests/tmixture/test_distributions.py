"""``MultivariateStudentT`` against scipy, finite differences, sampling and the laws of ``torch.distributions``."""

import copy
import math
import pickle

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from torch.autograd import gradcheck
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, StudentT

from tmixture.distributions import MultivariateStudentT

INF = float("inf")
DOFS = [0.5, 1.0, 4.0, 30.0, 1e4, 1e6, INF]


def make_parameters(d, batch=(), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batch, d, generator=generator, dtype=torch.float64)
    factor = torch.randn(*batch, d, d, generator=generator, dtype=torch.float64)
    scale = factor @ factor.mT / d + 0.5 * torch.eye(d, dtype=torch.float64)
    return loc.to(dtype), scale.to(dtype)


def make_values(n, d, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("df", DOFS)
@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_and_entropy_agree_with_scipy(df, d, dtype):
    loc, scale = make_parameters(d, dtype=dtype)
    value = make_values(50, d).to(dtype)
    reference = stats.multivariate_t(loc.double().numpy(), scale.double().numpy(), df)
    ours = MultivariateStudentT(df, loc, scale_matrix=scale)
    log_prob, entropy = ours.log_prob(value), ours.entropy()
    assert log_prob.dtype == entropy.dtype == dtype
    # scipy's own lgamma differences lose digits in float64 as df grows, so float64 is held to 1e-9 here.
    rtol = 2e-6 if dtype == torch.float32 else 1e-9
    np.testing.assert_allclose(log_prob.numpy(), reference.logpdf(value.double().numpy()), rtol=rtol)
    np.testing.assert_allclose(entropy.numpy(), reference.entropy(), rtol=rtol)


@pytest.mark.parametrize(
    ("x", "df", "density"),
    [(2.0, 7.0, 0.06313533694826684), (1.5, 25.0, 0.1288320155351443), (4.5, 1.0, 0.014979288677507493)],
)
def test_univariate_density_has_the_published_value(x, df, density):
    one = torch.ones(1, 1, dtype=torch.float64)
    t = MultivariateStudentT(df, torch.zeros(1, dtype=torch.float64), one)
    # The published digits come from a less exact lgamma: 1/(π(1+4.5²)) already differs from the third in the 9th digit.
    assert t.log_prob(one[0] * x).exp().item() == pytest.approx(density, rel=1e-8)
    assert t.log_prob(one[0] * x).exp().item() == pytest.approx(stats.t(df).pdf(x), rel=1e-14)


@pytest.mark.parametrize("df", [0.3, 39.0, 39.999999, 40.0, 41.0, 1e3, 1e6, 1e8])
@pytest.mark.parametrize("h", range(1, 5))
def test_normaliser_keeps_its_digits_at_every_df(df, h):
    # For d = 2h the ratio of gammas is a plain product: Γ(z+h)/(Γ(z)·z^h) = Π_{j<h} (1 + j/z), no lgamma involved.
    z, d = df / 2, 2 * h
    expected = sum(math.log1p(j / z) for j in range(h)) - h * math.log(2 * math.pi)
    t = MultivariateStudentT(df, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    assert t.log_prob(t.loc).item() == pytest.approx(expected, abs=2e-14)


@pytest.mark.parametrize("df", [1e-3, 2.0000001, 39.99, 40.0, 1e3, 1e8, 1e15, 1e17, 1e30, 1e300])
@pytest.mark.parametrize("d", [1, 3, 512])
def test_every_finite_df_keeps_its_digits(df, d):
    """With δ = d, against the formulas in 400 digits, of which 300 cancel at the largest df."""
    with mpmath.workdps(400):
        nu = mpmath.mpf(df)
        z, half = nu / 2, (nu + d) / 2
        at_loc = mpmath.loggamma(half) - mpmath.loggamma(z) - mpmath.mpf(d) / 2 * mpmath.log(nu * mpmath.pi)
        log_prob = float(at_loc - half * mpmath.log1p(d / nu))
        entropy = float(half * (mpmath.digamma(half) - mpmath.digamma(z)) - at_loc)
        variance = float(nu / (nu - 2)) if df > 2 else math.nan
    t = MultivariateStudentT(df, torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    assert t.log_prob(torch.ones(d, dtype=torch.float64)).item() == pytest.approx(log_prob, rel=1e-13)
    assert t.entropy().item() == pytest.approx(entropy, rel=1e-13)
    assert t.variance[0].item() == pytest.approx(variance, rel=1e-15, nan_ok=True)
    assert t.covariance_matrix[0, 0].item() == pytest.approx(variance, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("df", [1e10, 1e20, 1e38])
def test_draws_of_a_nearly_normal_distribution_are_nearly_normal(df):
    torch.manual_seed(0)
    sample = MultivariateStudentT(df, torch.zeros(2), torch.eye(2)).sample((2000,))
    torch.manual_seed(0)
    normal = MultivariateNormal(torch.zeros(2), torch.eye(2)).sample((2000,))
    torch.testing.assert_close(sample, normal, rtol=5e-5, atol=1e-5)


def test_infinite_df_is_exactly_the_normal_distribution():
    loc, scale = make_parameters(4)
    t, normal = MultivariateStudentT(INF, loc, scale_matrix=scale), MultivariateNormal(loc, scale)
    value = make_values(20, 4)
    torch.testing.assert_close(t.log_prob(value), normal.log_prob(value), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(t.entropy(), normal.entropy(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(t.covariance_matrix, scale, rtol=1e-14, atol=1e-14)
    torch.manual_seed(0)
    sample = t.sample((5,))
    torch.manual_seed(0)
    torch.testing.assert_close(sample, normal.sample((5,)), rtol=1e-14, atol=1e-14)


def test_infinite_and_finite_df_live_in_one_batch():
    loc, scale = make_parameters(2)
    df = torch.tensor([4.0, INF], dtype=torch.float64, requires_grad=True)
    t = MultivariateStudentT(df, loc, scale_matrix=scale)
    value = make_values(3, 2).unsqueeze(1)
    expected = [MultivariateStudentT(v, loc, scale_matrix=scale).log_prob(value[:, 0]) for v in (4.0, INF)]
    torch.testing.assert_close(t.log_prob(value), torch.stack(expected, dim=-1), rtol=1e-14, atol=1e-14)
    (t.log_prob(value).sum() + t.rsample((3,)).sum() + t.entropy().sum() + t.variance.sum()).backward()
    assert torch.isfinite(df.grad).all()
    assert df.grad[1] == 0


@pytest.mark.parametrize("name", ["scale_tril", "scale_matrix", "precision_matrix"])
@pytest.mark.parametrize("df", [0.7, 5.0, 60.0])
def test_gradients_match_finite_differences(name, df):
    loc, scale = make_parameters(3, batch=(2,))
    matrix = {
        "scale_tril": torch.linalg.cholesky(scale),
        "scale_matrix": scale,
        "precision_matrix": torch.linalg.inv(scale),
    }[name]
    value = make_values(4, 3).unsqueeze(1)
    inputs = [torch.tensor([df, df + 1], dtype=torch.float64), loc, matrix, value]

    def log_prob_and_entropy(df, loc, matrix, value):
        # Finite differences move one entry of a matrix at a time: keep it triangular or symmetric.
        matrix = matrix.tril() if name == "scale_tril" else (matrix + matrix.mT) / 2
        t = MultivariateStudentT(df, loc, **{name: matrix}, validate_args=False)
        return t.log_prob(value), t.entropy()

    assert gradcheck(log_prob_and_entropy, [x.requires_grad_() for x in inputs])


def test_gradients_in_df_keep_their_digits_when_df_is_large():
    # d/dz of Σ_j log1p(j/z) with z = df/2, see the normaliser test above.
    df = torch.tensor(1e5, dtype=torch.float64, requires_grad=True)
    t = MultivariateStudentT(df, torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    t.log_prob(t.loc).backward()
    z = 5e4
    expected = 0.5 * sum(-j / (z * (z + j)) for j in range(3))
    assert df.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("df", [0.5, 4.0, 50.0])
def test_rsample_is_reparameterised_in_df(df):
    # Along a path of fixed randomness, E[g(x)] has the derivative that quadrature gives; g is bounded.
    n, step = 400_000, 1e-4
    torch.manual_seed(0)
    dof = torch.tensor(df, dtype=torch.float64, requires_grad=True)
    t = MultivariateStudentT(dof, torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    torch.exp(-t.rsample((n,)).square()).mean().backward()
    expectation = [stats.t(df + s).expect(lambda x: np.exp(-(x**2)), lb=-10, ub=10) for s in (step, -step)]
    expected = (expectation[0] - expectation[1]) / (2 * step)
    assert dof.grad.item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("df", [1.0, 4.0, 30.0, INF])
def test_samples_follow_the_distribution(df):
    # δ/d of a sample is F(d, df) distributed (chi²(d)/d at df = inf), and the direction L⁻¹(x−loc)/√δ is isotropic.
    d, n = 3, 20_000
    loc, scale = make_parameters(d)
    torch.manual_seed(1)
    t = MultivariateStudentT(df, loc, scale_matrix=scale)
    white = torch.linalg.solve_triangular(t.scale_tril, (t.sample((n,)) - loc).mT, upper=False)
    delta = white.square().sum(0)
    radius = stats.f(d, df) if math.isfinite(df) else stats.chi2(d, scale=1 / d)
    assert stats.kstest((delta / d).numpy(), radius.cdf).pvalue > 1e-3
    direction = white / delta.sqrt()
    torch.testing.assert_close(
        direction @ direction.mT / n, torch.eye(d, dtype=torch.float64) / d, rtol=0, atol=5 / math.sqrt(n) / d
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_moments_match_mean_and_covariance(dtype):
    loc, scale = make_parameters(2, batch=(2,), dtype=dtype)
    torch.manual_seed(2)
    t = MultivariateStudentT(torch.tensor([9.0, INF]), loc, scale_matrix=scale)
    sample = t.sample((200_000,))
    assert sample.dtype == t.covariance_matrix.dtype == dtype
    torch.testing.assert_close(sample.mean(0), t.mean, rtol=0, atol=0.02)
    for k in range(2):
        torch.testing.assert_close(sample[:, k].T.cov(), t.covariance_matrix[k], rtol=0.03, atol=0.02)
    torch.testing.assert_close(t.variance, t.covariance_matrix.diagonal(dim1=-2, dim2=-1))


def test_entropy_is_the_expected_negative_log_density():
    loc, scale = make_parameters(3, batch=(3,))
    torch.manual_seed(3)
    t = MultivariateStudentT(torch.tensor([1.0, 6.0, INF]), loc, scale_matrix=scale)
    torch.testing.assert_close(-t.log_prob(t.sample((200_000,))).mean(0), t.entropy(), rtol=5e-3, atol=0)


def test_undefined_moments_follow_torchs_student_t():
    df = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 1e6])
    loc, scale = torch.full((6, 1), 3.0), torch.full((6, 1, 1), 4.0)
    t, univariate = MultivariateStudentT(df, loc, scale_matrix=scale), StudentT(df, 3.0, 2.0)
    torch.testing.assert_close(t.mean[:, 0], univariate.mean, equal_nan=True)
    torch.testing.assert_close(t.variance[:, 0], univariate.variance, equal_nan=True)
    torch.testing.assert_close(t.covariance_matrix[:, 0, 0], univariate.variance, equal_nan=True)
    torch.testing.assert_close(t.mode, loc)


def test_three_parameterisations_are_one_distribution():
    loc, scale = make_parameters(3, batch=(2,))
    value = make_values(5, 3).unsqueeze(1)
    variants = [
        MultivariateStudentT(3.0, loc, torch.linalg.cholesky(scale)),
        MultivariateStudentT(3.0, loc, scale_matrix=scale),
        MultivariateStudentT(3.0, loc, precision_matrix=torch.linalg.inv(scale)),
    ]
    for t in variants:
        torch.testing.assert_close(t.log_prob(value), variants[0].log_prob(value))
        torch.testing.assert_close(t.scale_matrix, scale)
        torch.testing.assert_close(t.scale_tril, torch.linalg.cholesky(scale))
        torch.testing.assert_close(t.precision_matrix, torch.linalg.inv(scale))


@pytest.mark.parametrize(
    ("df_shape", "loc_batch", "matrix_batch", "batch_shape"),
    [
        ((), (), (), ()),
        ((5,), (), (), (5,)),
        ((), (4, 1), (5,), (4, 5)),
        ((2, 1, 1), (4, 1), (5,), (2, 4, 5)),
        ((5,), (2, 4, 5), (1, 1), (2, 4, 5)),
    ],
)
def test_parameters_broadcast_to_the_batch_shape(df_shape, loc_batch, matrix_batch, batch_shape):
    d = 3
    loc, _ = make_parameters(d, batch=loc_batch)
    _, scale = make_parameters(d, batch=matrix_batch, seed=1)
    df = 1 + torch.rand(df_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    t = MultivariateStudentT(df, loc, scale_matrix=scale)
    assert t.batch_shape == batch_shape
    assert t.event_shape == (d,)
    assert t.rsample((7,)).shape == (7, *batch_shape, d)
    for matrix in (t.scale_tril, t.scale_matrix, t.precision_matrix, t.covariance_matrix):
        assert matrix.shape == (*batch_shape, d, d)
    for vector in (t.mean, t.mode, t.variance):
        assert vector.shape == (*batch_shape, d)
    assert t.entropy().shape == batch_shape

    value = make_values(7, d).reshape(7, *[1] * len(batch_shape), d)
    log_prob = t.log_prob(value)
    assert log_prob.shape == (7, *batch_shape)
    full_df, full_loc, full_scale = df.expand(batch_shape), loc.expand(*batch_shape, d), t.scale_matrix
    for index in np.ndindex(*batch_shape):
        reference = stats.multivariate_t(full_loc[index].numpy(), full_scale[index].numpy(), full_df[index].item())
        np.testing.assert_allclose(
            log_prob[(slice(None), *index)], reference.logpdf(value.reshape(7, d).numpy()), rtol=1e-11
        )


@pytest.mark.parametrize("name", ["scale_tril", "scale_matrix", "precision_matrix"])
def test_expand_copies_nothing_and_keeps_the_density(name):
    loc, scale = make_parameters(2, batch=(3,))
    t = MultivariateStudentT(4.0, loc, **{name: torch.linalg.cholesky(scale) if name == "scale_tril" else scale})
    expanded = t.expand((4, 3))
    assert expanded.batch_shape == (4, 3)
    assert type(expanded) is MultivariateStudentT
    assert expanded.loc.data_ptr() == t.loc.data_ptr()
    value = make_values(3, 2)
    torch.testing.assert_close(expanded.log_prob(value), t.log_prob(value).expand(4, 3))
    torch.testing.assert_close(expanded.covariance_matrix, t.covariance_matrix.expand(4, 3, 2, 2))
    torch.testing.assert_close(getattr(expanded, name), getattr(t, name).expand(4, 3, 2, 2))
    torch.testing.assert_close(expanded.entropy(), t.entropy().expand(4, 3))
    assert expanded.rsample((2,)).shape == (2, 4, 3, 2)


@pytest.mark.parametrize("df", [4.0, [0.5, 4.0, INF]])
def test_mixture_same_family_is_the_manual_logsumexp(df):
    loc, scale = make_parameters(2, batch=(3,))
    df = torch.tensor(df, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    mixture = MixtureSameFamily(Categorical(weights), MultivariateStudentT(df, loc, scale_matrix=scale))
    value = make_values(6, 2)
    log_densities = [
        stats.multivariate_t(loc[k].numpy(), scale[k].numpy(), df.expand(3)[k].item()).logpdf(value.numpy())
        for k in range(3)
    ]
    manual = torch.logsumexp(weights.log() + torch.as_tensor(np.stack(log_densities, axis=1)), dim=1)
    torch.testing.assert_close(mixture.log_prob(value), manual)
    assert mixture.sample((4,)).shape == (4, 2)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_have_the_same_density(copier):
    loc, scale = make_parameters(2, batch=(3,))
    t = MultivariateStudentT(4.0, loc, scale_matrix=scale)
    value = make_values(3, 2)
    copied = copier(t)
    assert torch.equal(copied.log_prob(value), t.log_prob(value))
    assert repr(copied) == repr(t)


def test_repr_names_the_parameters_given():
    t = MultivariateStudentT(4.0, torch.zeros(3, 2), torch.eye(2))
    shapes = "df: torch.Size([3]), loc: torch.Size([3, 2]), scale_tril: torch.Size([3, 2, 2])"
    assert repr(t) == f"MultivariateStudentT({shapes})"


@pytest.mark.parametrize("df", [4, 4.0, torch.tensor(4), torch.tensor(4.0, dtype=torch.float64)])
def test_df_takes_the_dtype_of_loc(df):
    t = MultivariateStudentT(df, torch.zeros(2), torch.eye(2))
    assert t.df.dtype == t.log_prob(torch.ones(2)).dtype == t.sample().dtype == torch.float32


def test_float32_survives_a_huge_outlier_and_a_huge_df():
    t = MultivariateStudentT(torch.tensor([1.0, 1e8]), torch.zeros(2), torch.eye(2))
    value = torch.full((2,), 1e8)
    expected = [stats.multivariate_t(np.zeros(2), np.eye(2), df).logpdf(value.numpy()) for df in (1.0, 1e8)]
    np.testing.assert_allclose(t.log_prob(value).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale_tril": None}, "got none of them"),
        ({"precision_matrix": torch.eye(2)}, "got scale_tril and precision_matrix"),
        ({"loc": torch.tensor(0.0)}, r"loc must be .* shape \(\)"),
        ({"loc": torch.tensor([0, 1])}, r"loc must be .* torch.int64"),
        ({"scale_tril": torch.ones(2)}, r"scale_tril must have shape \(\*batch, 2, 2\) .* got \(2,\)"),
        ({"scale_tril": torch.eye(3)}, r"scale_tril must have shape \(\*batch, 2, 2\) .* got \(3, 3\)"),
        ({"df": 0.0}, "parameter df"),
        ({"df": math.nan}, "parameter df"),
        ({"df": torch.tensor([1.0, -1.0])}, "parameter df"),
        ({"loc": torch.tensor([math.nan, 0.0])}, "parameter loc"),
        ({"scale_tril": torch.ones(2, 2)}, "parameter scale_tril"),
        ({"scale_tril": None, "scale_matrix": -torch.eye(2)}, "parameter scale_matrix"),
        ({"scale_tril": None, "precision_matrix": torch.ones(2, 2)}, "parameter precision_matrix"),
    ],
)
def test_invalid_arguments_are_named(arguments, message):
    valid = {"df": 4.0, "loc": torch.zeros(2), "scale_tril": torch.eye(2)}
    with pytest.raises(ValueError, match=message):
        MultivariateStudentT(**(valid | arguments), validate_args=True)


def test_invalid_values_are_refused():
    t = MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        t.log_prob(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="event_shape"):
        t.log_prob(torch.zeros(3))
