"""The Student-t of a low-rank or diagonal scale matrix is the one of the same matrix written out."""

import math

import pytest
import torch

from tmixture import LowRankMultivariateStudentT, MultivariateStudentT


def pair(df, d=5, q=2, batch=(), seed=0, dtype=torch.float64):
    """The distribution, and the one with the matrix written out."""
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(*batch, d, generator=generator, dtype=dtype)
    factor = torch.randn(*batch, d, q, generator=generator, dtype=dtype)
    diag = 0.5 + torch.rand(*batch, d, generator=generator, dtype=dtype)
    matrix = factor @ factor.mT + torch.diag_embed(diag)
    return LowRankMultivariateStudentT(df, loc, factor, diag), MultivariateStudentT(df, loc, scale_matrix=matrix)


@pytest.mark.parametrize("df", [0.5, 1.5, 4.0, 1e6, math.inf])
@pytest.mark.parametrize(("q", "batch"), [(0, ()), (1, (3,)), (4, (2, 3))])
def test_it_says_what_the_written_out_one_says(df, q, batch):
    one, other = pair(df, q=q, batch=batch)
    x = torch.randn(7, *batch, 5, dtype=torch.float64)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x))
    torch.testing.assert_close(one.entropy(), other.entropy())
    for name in ("mean", "mode", "variance", "covariance_matrix", "scale_matrix"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True)
    assert (one.batch_shape, one.event_shape) == (other.batch_shape, other.event_shape)


def test_several_df_meet_one_matrix_and_it_expands():
    df = torch.tensor([2.0, 4.0, math.inf], dtype=torch.float64)
    one, other = pair(df)
    assert one.batch_shape == (3,)
    x = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x))
    torch.testing.assert_close(one.expand((2, 3)).log_prob(x), other.log_prob(x).expand(2, 3))


@pytest.mark.parametrize("df", [6.0, math.inf])
@pytest.mark.parametrize("q", [0, 2])
def test_samples_have_its_moments_and_gradients(df, q):
    torch.manual_seed(0)
    one, _ = pair(df, q=q)
    x = one.sample((200_000,))
    torch.testing.assert_close(x.mean(0), one.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), one.covariance_matrix, rtol=0.1, atol=0.1)
    factor = one.cov_factor.clone().requires_grad_()
    diag = one.cov_diag.clone().requires_grad_()
    LowRankMultivariateStudentT(df, one.loc, factor, diag).rsample((10,)).sum().backward()
    assert diag.grad.isfinite().all()
    assert factor.grad is None or factor.grad.isfinite().all()


def test_a_large_one_needs_no_large_matrix():
    d = 50_000  # its matrix would take 20 GB
    t = LowRankMultivariateStudentT(4.0, torch.zeros(d), torch.ones(d, 1) / d**0.5, torch.ones(d))
    assert t.log_prob(t.sample((3,))).isfinite().all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="loc must be a floating-point tensor"):
        LowRankMultivariateStudentT(4.0, torch.zeros(3, dtype=torch.long), torch.ones(3, 1), torch.ones(3))
    with pytest.raises(ValueError, match="cov_factor"):
        LowRankMultivariateStudentT(4.0, torch.zeros(3), torch.ones(2, 1), torch.ones(3))
    with pytest.raises(ValueError, match="cov_diag"):
        LowRankMultivariateStudentT(4.0, torch.zeros(3), torch.ones(3, 1), -torch.ones(3))
    with pytest.raises(ValueError, match="df"):
        LowRankMultivariateStudentT(-1.0, torch.zeros(3), torch.ones(3, 1), torch.ones(3), validate_args=True)
