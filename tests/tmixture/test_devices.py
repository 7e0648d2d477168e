"""On every device there is: naive loops in float64 on the host are the reference, or the same call on a CPU."""

import warnings

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture, em, initialization
from tmixture.data.chunks import Chunk
from tmixture.maximization import Rules
from tmixture.scales import pairs

from . import naive
from .helpers import (
    CLOSED_FORM,
    LEARN_DOF,
    STRUCTURES,
    CallCounter,
    assert_same_parameters,
    computes,
    from_model,
    in_turn,
    of,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def blobs(n=600, dtype=torch.float32):
    """Heavy-tailed rows of three clusters that every start finds."""
    model = naive.random_model(3, 4, "diag", dof=4.0, spread=6.0)
    return torch.as_tensor(naive.draw(model, n)).to(dtype)


def on_host(mixture):
    return mixture.to("cpu")


@pytest.mark.parametrize(
    ("structure", "learn_dof", "dtype"), in_turn([*CLOSED_FORM, *CLOSED_FORM[:2]], LEARN_DOF, list(TOLERANCE))
)
def test_em_is_the_naive_em(device, structure, learn_dof, dtype):
    x, model = naive.heavy_tailed(structure=structure, N=40)
    sample_weight = np.random.default_rng(3).uniform(0.2, 2.0, len(x))
    mixture = from_model(model, structure, dtype=dtype, learn_dof=learn_dof, max_iter=3).to(device)
    mixture.fit(torch.as_tensor(x).to(device, dtype), sample_weight=sample_weight)
    history = []
    for _ in range(3):
        history.append(naive.log_likelihood(x, model, sample_weight) / sample_weight.sum())
        model = naive.em_step(x, model, structure, learn_dof=learn_dof, sample_weight=sample_weight)
    assert mixture.means.device.type == device.type
    assert_same_parameters(on_host(mixture), model, rtol=TOLERANCE[dtype])
    np.testing.assert_allclose(mixture.history_[:3], history, rtol=TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("n_tight", [0, 3])
def test_many_components_in_many_dimensions(device, structure, n_tight):
    """Sparse weights, parts of distances, and tight components far away, for which there are ways of their own."""
    model = naive.random_model(80, 70, structure, spread=1.5)
    model.scales[:n_tight] /= 100.0
    x = torch.as_tensor(naive.draw(model, 900))
    settings = {"reg_covar": 1e-3, "max_iter": 2}
    expected = from_model(model, structure, **settings).fit(x)
    mixture = from_model(model, structure, dtype=torch.float32, **settings).to(device).fit(x.float().to(device))
    np.testing.assert_allclose(mixture.history_, expected.history_, rtol=1e-5)
    assert_same_parameters(on_host(mixture), expected, rtol=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_is_asked_is_answered_on_the_device(device, structure):
    model = naive.random_model(3, 4, structure)
    x = torch.as_tensor(naive.draw(model, 50))
    reference = from_model(model, structure)
    mixture = from_model(model, structure).to(device)
    rows = x.to(device, copy=True).requires_grad_()
    for name in ("forward", "log_prob", "component_log_prob", "outlier_weights"):
        answer = getattr(mixture, name)(rows)
        assert answer.device.type == device.type
        torch.testing.assert_close(answer.cpu(), getattr(reference, name)(x))
    mixture.log_prob(rows).sum().backward()
    expected = x.clone().requires_grad_()
    reference.log_prob(expected).sum().backward()
    torch.testing.assert_close(rows.grad.cpu(), expected.grad)
    assert torch.equal(mixture.predict(rows.detach()).cpu(), reference.predict(x))
    assert mixture.bic(rows.detach()) == pytest.approx(reference.bic(x))
    torch.testing.assert_close(mixture.scales.cpu(), reference.scales)
    drawn, component = mixture.sample(20, generator=torch.Generator().manual_seed(0))
    assert drawn.device.type == component.device.type == device.type


@needs_gpu
@pytest.mark.parametrize("init", list(initialization.CENTRES))
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_fit_from_scratch_ends_where_that_on_a_cpu_does(device, init, structure):
    x = blobs()
    settings = {**of(structure), "init": init, "generator": 1, "n_init": 3, "max_iter": 300, "tol": 1e-9}
    expected = StudentTMixture(3, 4, dtype=torch.float64, **settings).fit(x)
    mixture = StudentTMixture(3, 4, device=device, **settings).fit(x)  # from the host's memory
    assert mixture.score(x) == pytest.approx(expected.score(x), abs=1e-3)
    assert mixture.score(x.to(device)) == pytest.approx(mixture.score(x.numpy()), abs=1e-6)


def test_shards_arrays_and_loaders_reach_the_device(device, tmp_path):
    x = blobs()
    np.save(tmp_path / "one.npy", x[:300].numpy())
    np.save(tmp_path / "two.npy", x[300:].numpy())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=64)
    fits = [
        StudentTMixture(3, 4, generator=0, device=device, chunk_size=200).fit(data)
        for data in (x.to(device), x.numpy(), [tmp_path / "one.npy", tmp_path / "two.npy"], loader)
    ]
    for other in fits[1:]:
        torch.testing.assert_close(other.means, fits[0].means)


@pytest.mark.parametrize("structure", ["diag", "full"])
def test_candidates(device, structure):
    x = blobs(2000)
    settings = {"covariance_type": structure, "generator": 0, "max_iter": 5, "tol": 0.0, "reg_covar": 1e-2}
    expected = StudentTMixture(12, 4, max_candidates=6, dtype=torch.float64, **settings).fit(x)
    mixture = StudentTMixture(12, 4, max_candidates=6, device=device, dtype=torch.float64, **settings).fit(x)
    assert mixture.history_[-1] == pytest.approx(expected.history_[-1], abs=0.05)
    exact = StudentTMixture(12, 4, device=device, dtype=torch.float64, **settings).fit(x)
    everyone = StudentTMixture(12, 4, max_candidates=12, device=device, dtype=torch.float64, **settings).fit(x)
    np.testing.assert_allclose(everyone.history_, exact.history_, rtol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_stream_and_its_state(device, structure, tmp_path):
    x = blobs()
    mixture = StudentTMixture(3, 4, generator=0, device=device, **of(structure))
    for batch in x.to(device).split(50)[:6]:
        mixture.partial_fit(batch)
    copy = StudentTMixture(3, 4, device=device, **of(structure))
    copy.load_state_dict(mixture.state_dict())
    mixture.save(tmp_path / "mixture.safetensors")
    loaded = StudentTMixture.load(tmp_path / "mixture.safetensors", device=device)
    for other in (copy, loaded):
        assert other.means.device.type == device.type
        for batch in x.to(device).split(50)[6:]:
            other.partial_fit(batch)
    for batch in x.to(device).split(50)[6:]:
        mixture.partial_fit(batch)
    torch.testing.assert_close(copy.means, mixture.means)
    torch.testing.assert_close(loaded.means, mixture.means)
    assert mixture.score(x) > StudentTMixture(1, 4, **of(structure)).fit(x).score(x)


@pytest.mark.parametrize("density", [0.01, 0.9])
def test_sums_over_pairs_are_products(device, density):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 5, generator=generator)
    weight = torch.rand(2000, 90, generator=generator) * (torch.rand(2000, 90, generator=generator) < density)
    sums = pairs.weighted_sums(weight.to(device), x.to(device))
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums.cpu(), weight.double().T @ x.double(), rtol=1e-5, atol=1e-4)


@needs_gpu
def test_tf32_is_close_and_float32_is_not_touched_by_it():
    x = torch.randn(4000, 256, generator=torch.Generator().manual_seed(0)).cuda()
    exact = StudentTMixture(8, 256, generator=0, max_iter=5, tol=0.0, device="cuda").fit(x)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        same = StudentTMixture(8, 256, generator=0, max_iter=5, tol=0.0, device="cuda").fit(x)
        fast = StudentTMixture(8, 256, generator=0, max_iter=5, tol=0.0, device="cuda", allow_tf32=True).fit(x)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert same.history_[0] == pytest.approx(exact.history_[0], rel=1e-7)
    assert fast.history_[0] == pytest.approx(exact.history_[0], rel=1e-3)


# Once for the dtype of the distances, once for what there is to decide after the E-step; and whether a Cholesky
# factorization went well.
WAITS = {"diag": 2, "spherical": 2, "tied": 3}


@pytest.mark.parametrize(("structure", "learn_dof", "weighted"), in_turn(WAITS, LEARN_DOF, [False, True]))
def test_an_iteration_asks_the_device_so_often(structure, learn_dof, weighted, monkeypatch):
    """However many chunks there are. The meta device, without any numbers, refuses whatever is not answered here."""
    asked = []

    def answer(question, instead):
        def method(tensor):
            if tensor.device.type != "meta":
                return question(tensor)
            asked.append(tensor.shape)
            return instead(tensor)

        return method

    for name, instead in {
        "__bool__": lambda tensor: True,
        # Whether components are Gaussian, or sums of which the first is the log-likelihood, which rises.
        "tolist": lambda x: [False] * len(x) if x.dtype == torch.bool else [1e3 * len(asked)] + [1.0] * (len(x) - 1),
        "item": lambda tensor: 0,
    }.items():
        monkeypatch.setattr(torch.Tensor, name, answer(getattr(torch.Tensor, name), instead))
    parameters = from_model(naive.random_model(5, 12, structure), structure).snapshot().to(torch.device("meta"))
    x, weight = torch.empty(4000, 12, device="meta"), torch.empty(4000, dtype=torch.float64, device="meta")
    chunks = [Chunk(x, weight if weighted else None)] * 3
    rules = Rules("px", learn_dof, (0.5, 200.0), torch.full((12,), 1e-6, device="meta", dtype=torch.float64))
    steps = em.iterate(chunks, parameters, rules, dtype=torch.float32, max_iter=10, tol=0.0, generator=None)
    assert [step.n_iter for step in steps] == list(range(11))
    assert len(asked) <= 11 * WAITS[structure] + 1  # and once, which components are Gaussian


@needs_gpu
@pytest.mark.parametrize("structure", WAITS)
def test_an_iteration_hardly_ever_waits_for_the_gpu(structure):
    x = torch.randn(50_000, 32, generator=torch.Generator().manual_seed(0)).cuda()

    def waits(max_iter):
        mixture = StudentTMixture(8, 32, generator=0, max_iter=max_iter, tol=0.0, device="cuda", **of(structure))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                mixture.fit(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    waits(1)
    assert waits(11) - waits(1) <= 10 * WAITS[structure]


@pytest.mark.parametrize(
    ("structure", "learn_dof", "most"),
    [
        ("diag", False, 85),
        ("diag", "component", 275),
        ("spherical", False, 90),
        ("tied", False, 105),
        ("full", False, 155),
        ("lowrank", False, 250),
    ],
)
def test_an_iteration_of_a_small_fit_takes_so_many_calls(structure, learn_dof, most):
    x = torch.randn(150, 4, generator=torch.Generator().manual_seed(0))
    settings = dict(**of(structure), learn_dof=learn_dof, init=x[:3], tol=0)
    counts = []
    for iterations in (5, 15):
        with CallCounter(computes) as counter:
            StudentTMixture(3, 4, max_iter=iterations, **settings).fit(x)
        counts.append(counter.n_calls)
    assert (counts[1] - counts[0]) / 10 <= most


def test_a_step_of_a_stream_takes_so_many_calls():
    batches = torch.randn(20, 64, 4, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(3, 4, generator=0)
    for batch in batches[:-1]:
        mixture.partial_fit(batch)
    with CallCounter(computes) as counter:
        mixture.partial_fit(batches[-1])
    assert counter.n_calls <= 340
