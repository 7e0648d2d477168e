"""Gradients in the data and the parameters, compilation, and low-precision or odd input."""

import copy
from functools import cache

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from tmixture import StudentTMixture, scales

from .helpers import STRUCTURES, in_turn, of

INF = float("inf")
DOFS = {"four": 4.0, "gaussian": INF, "mixed": [1.0, INF, 7.5]}
QUERIES = ["log_prob", "responsibilities", "component_log_prob", "outlier_weights"]


def rows(n, d=2, seed=0, dtype=torch.float64):
    return (2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def fit(structure, dof="four", d=2, dtype=torch.float64, **settings):
    return copy.deepcopy(_fit(structure, dof, d, dtype, **settings))


@cache
def _fit(structure, dof, d, dtype, **settings):
    mixture = StudentTMixture(3, d, **of(structure), dof=DOFS[dof], generator=0, dtype=dtype, **settings)
    return mixture.fit(rows(200, d, dtype=dtype))


@pytest.mark.parametrize(
    ("structure", "dof", "query"), in_turn([s for s in STRUCTURES for _ in DOFS], list(DOFS), list(QUERIES))
)
def test_gradients_in_the_data(structure, dof, query):
    mixture = fit(structure, dof)
    assert gradcheck(getattr(mixture, query), rows(5, seed=1).requires_grad_())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", ["four", "gaussian"])
@pytest.mark.parametrize("query", ["log_prob", "responsibilities"])
def test_gradients_in_the_parameters(structure, dof, query):
    class Query(torch.nn.Module):
        """So that `functional_call` reaches methods other than `forward`."""

        def __init__(self, mixture):
            super().__init__()
            self.mixture = mixture

        def forward(self, x):
            return getattr(self.mixture, query)(x)

    module = Query(fit(structure, dof).train_by_gradients())
    x = rows(5, seed=1)
    names, values = zip(*module.named_parameters())
    assert len(names) == (2 if dof == "gaussian" else 3) + len(scales.STRUCTURES[structure].constraints)
    assert gradcheck(
        lambda *given: functional_call(module, dict(zip(names, given)), x),
        tuple(value.detach().clone().requires_grad_() for value in values),
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_training_starts_where_em_ended(structure):
    fitted = fit(structure, learn_dof="component")
    trained = copy.deepcopy(fitted).train_by_gradients()
    x = rows(50, seed=1)
    torch.testing.assert_close(trained.log_prob(x), fitted.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(trained.scales, fitted.scales)


def clusters(n=150):
    """Three clusters with tails of ν = 3."""
    generator = torch.Generator().manual_seed(0)
    chi = torch._standard_gamma(torch.full((3 * n, 1), 1.5, dtype=torch.float64), generator=generator) / 1.5
    centres = 8 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    return centres.repeat_interleave(n, 0) + rows(3 * n) / 2 / chi.sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_gradient_vanishes_where_em_ends(structure):
    x = clusters()
    settings = dict(**of(structure), generator=0, dtype=torch.float64, reg_covar=0.0)
    mixture = StudentTMixture(3, 2, learn_dof="component", max_iter=500, tol=0.0, **settings).fit(x)
    mixture.train_by_gradients().log_prob(x).mean().backward()
    gradients = {name: parameter.grad.abs().max() for name, parameter in mixture.named_parameters()}
    assert len(gradients) == 3 + len(scales.STRUCTURES[structure].constraints)
    assert max(gradients.values()) < 1e-6, gradients


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_an_optimizer_reaches_the_likelihood_of_em(structure):
    x = clusters()
    settings = dict(**of(structure), dof=5.0, learn_dof="component", generator=0, dtype=torch.float64)
    best = StudentTMixture(3, 2, max_iter=2000, tol=1e-10, **settings).fit(x).score(x)
    mixture = StudentTMixture(3, 2, max_iter=1, **settings).fit(x).train_by_gradients()
    assert mixture.score(x) < best - 1e-2
    optimizer = torch.optim.LBFGS(mixture.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -mixture.log_prob(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert mixture.score(x) == pytest.approx(best, abs=1e-6)
    torch.testing.assert_close(mixture.weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (torch.linalg.eigvalsh(mixture.scales) > 0).all()
    assert (mixture.dof > 0).all()


def test_fit_and_state_survive_training():
    mixture = fit("full").train_by_gradients()
    x = rows(100, seed=3)
    mixture.fit(x)
    expected = StudentTMixture(3, 2, covariance_type="full", generator=0, dtype=torch.float64).fit(x)
    torch.testing.assert_close(mixture.log_prob(x), expected.log_prob(x), rtol=1e-9, atol=1e-9)
    other = fit("full", max_iter=1).train_by_gradients()
    other.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(other.log_prob(x), mixture.log_prob(x))


def test_it_guides_an_encoder():
    encoder = torch.nn.Linear(4, 2, dtype=torch.float64)
    mixture = fit("diag")
    before = mixture.log_prob(encoder(rows(20, 4))).mean()
    (-before).backward()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= 1e-3 * parameter.grad
    assert mixture.log_prob(encoder(rows(20, 4))).mean() > before
    assert not list(mixture.parameters())


def test_gradients_are_finite_far_from_everything_and_on_a_mean():
    for dof in ("four", "gaussian"):
        mixture = fit("full", dof)
        x = torch.cat([mixture.means, mixture.means + 1e6]).requires_grad_()
        mixture.log_prob(x).sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "lowrank"])
def test_forward_compiles_into_one_graph(structure):
    mixture = fit(structure, "mixed", dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(mixture, fullgraph=True, backend="aot_eager")
    for n in (7, 50):
        x = rows(n, seed=1, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), mixture(x))
    x, y = (rows(5, seed=2, dtype=torch.float32).requires_grad_() for _ in range(2))
    compiled(x).square().sum().backward()
    mixture(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    # New parameters are seen without compiling anew by hand.
    mixture.partial_fit(rows(100, seed=5, dtype=torch.float32))
    torch.testing.assert_close(compiled(x.detach()), mixture(x.detach()))


@pytest.mark.parametrize(
    ("query", "structure", "dtype"), in_turn([*QUERIES, *QUERIES], STRUCTURES, [torch.bfloat16, torch.float16])
)
def test_half_precision_input_is_computed_with_in_float32(structure, query, dtype):
    mixture = fit(structure, d=16, dtype=torch.float32)
    x = rows(50, 16, seed=1).to(dtype)
    answer = getattr(mixture, query)(x)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, getattr(mixture, query)(x.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(getattr(mixture, query)(x), answer)


@pytest.mark.parametrize("structure", ["diag", "full"])
def test_a_fit_on_half_precision_data_is_one_in_float32(structure):
    x = rows(300, 4).bfloat16()
    settings = dict(**of(structure), generator=0)
    expected = StudentTMixture(3, 4, **settings).fit(x.float())
    for mixture in (StudentTMixture(3, 4, **settings).fit(x), StudentTMixture(3, 4, **settings)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixture.fit(x)
        torch.testing.assert_close(mixture.means, expected.means)
        torch.testing.assert_close(mixture.scales, expected.scales)
    half = StudentTMixture(3, 4, dtype=torch.bfloat16, **settings).fit(x)
    assert half.log_prob(x).dtype == torch.float32
    assert half.scales.dtype == half.covariances.dtype == torch.bfloat16
    assert half.score(x) == pytest.approx(expected.score(x), abs=0.02)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_memory_layout_and_dtype_of_the_input_do_not_matter(structure):
    mixture = fit(structure, d=3, dtype=torch.float32)
    x = rows(20, 3, seed=1, dtype=torch.float32).round()
    expected = mixture(x)
    layouts = {
        "transposed": x.T.contiguous().T,
        "strided": torch.stack([x, x + 1], dim=2)[:, :, 0],
        "expanded": x[:1].expand(20, 3),
        "reversed": x.flip(0).contiguous().flip(0),
        "int64": x.long(),
        "int8": x.to(torch.int8),
        "float64": x.double(),
        "numpy": x.numpy(),
    }
    for name, same in layouts.items():
        wanted = expected[:1].expand(20, 3) if name == "expanded" else expected
        torch.testing.assert_close(mixture(same), wanted, msg=lambda text, name=name: f"{name}: {text}")
        assert mixture(same).dtype == torch.float32
