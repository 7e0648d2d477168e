"""`partial_fit`: where a stream ends, how it resumes, and what it does with odd batches."""

import copy
import math

import numpy as np
import pytest
import torch

from tmixture import PowerDecay, StudentTMixture

from .helpers import CLOSED_FORM, STRUCTURES, TIED, in_turn, of


def clusters(n, K, d, dof=10.0, distance=10.0, alike=False, seed=0, dtype=torch.float32):
    """Rows of K clusters, at `distance` from a common point and of unequal scales; their labels; the centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(K, d, generator=generator, dtype=torch.float64)
    if d == 2:
        angle = torch.arange(K, dtype=torch.float64) / K * 2 * math.pi
        centres = torch.stack([angle.cos(), angle.sin()], dim=1)
    centres = distance * torch.nn.functional.normalize(centres, dim=1)
    labels = torch.randint(K, (n,), generator=generator)
    spread = 0.7 + 0.7 * torch.rand(K, generator=generator, dtype=torch.float64) * (not alike)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64) * spread[labels, None]
    if math.isfinite(dof):
        shape = torch.full((n, 1), dof / 2, dtype=torch.float64)
        noise /= (torch._standard_gamma(shape, generator=generator) / (dof / 2)).sqrt()
    return (centres[labels] + noise).to(dtype), labels, centres.to(dtype)


def stream(mixture, x, *, batch_size, epochs, seed=0, order=None):
    """Feed the rows in random order, or always in `order`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        rows = torch.randperm(len(x), generator=generator) if order is None else order
        for batch in rows.split(batch_size):
            mixture.partial_fit(x[batch])
    return mixture


def mean_scales(mixture):
    """trace(Σ_k)/d."""
    return mixture.scales.diagonal(dim1=1, dim2=2).mean(1)


def state(mixture):
    return {name: tensor.clone() for name, tensor in mixture.state_dict().items()}


def assert_same_state(one, other):
    one, other = state(one), state(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---------------------------------------------------------------- where a stream ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("structure", "dof", "order"),
    in_turn([*STRUCTURES, "diag"], [4.0, math.inf, math.inf], ["shuffled", "sorted"]),
)
def test_small_batches_end_where_full_batch_em_does(structure, dof, order):
    x, labels, centres = clusters(1000, K=3, d=2, alike=structure in TIED)
    settings = dict(**of(structure), dof=dof, init=centres)
    full = StudentTMixture(3, 2, **settings).fit(x)
    streamed = stream(
        StudentTMixture(3, 2, **settings),
        x,
        batch_size=10,
        epochs=4,
        order=labels.argsort(stable=True) if order == "sorted" else None,
    )
    torch.testing.assert_close(mean_scales(streamed), mean_scales(full), rtol=0.02, atol=0)
    torch.testing.assert_close(streamed.means, full.means, rtol=0, atol=0.05)
    assert streamed.n_reseeded_ == 0
    if order == "shuffled":  # a sorted stream's memory holds more of the clusters that came last
        torch.testing.assert_close(streamed.weights, full.weights, rtol=0, atol=0.02)
        assert streamed.score(x) == pytest.approx(full.score(x), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["shuffled", "sorted"])
def test_batches_smaller_than_the_number_of_components(order):
    # With heavy tails a component that waits in a sorted stream may take the outliers of other clusters for its own.
    x, labels, centres = clusters(2000, K=40, d=64, distance=12.0, dof=math.inf if order == "sorted" else 10.0)
    settings = dict(init=centres)
    full = StudentTMixture(40, 64, **settings).fit(x)
    streamed = stream(
        StudentTMixture(40, 64, **settings),
        x,
        batch_size=10,
        epochs=3,
        order=labels.argsort(stable=True) if order == "sorted" else None,
    )
    ratio = mean_scales(streamed) / mean_scales(full)
    assert abs(ratio.mean().item() - 1) < 0.01
    assert (ratio - 1).abs().max() < (0.02 if order == "sorted" else 0.05)
    assert torch.equal(streamed.predict(x), full.predict(x))


@pytest.mark.slow
@pytest.mark.parametrize("learn_dof", ["shared", "component"])
def test_the_degrees_of_freedom_are_learned_too(learn_dof):
    x, _, centres = clusters(3000, K=2, d=4, dof=3.0, distance=20.0)
    settings = dict(init=centres, learn_dof=learn_dof, dof=20.0)
    full = StudentTMixture(2, 4, **settings).fit(x)
    assert full.dof.mean().item() == pytest.approx(3, rel=0.15)
    streamed = stream(StudentTMixture(2, 4, **settings), x, batch_size=20, epochs=3)
    torch.testing.assert_close(streamed.dof, full.dof, rtol=0.03 if learn_dof == "shared" else 0.15, atol=0)


def test_one_component_has_no_bias_however_small_the_batches():
    x = 3 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) + 50
    full = StudentTMixture(1, 2, dof=math.inf).fit(x)
    for batch_size in (1, 10):
        mixture = StudentTMixture(1, 2, dof=math.inf, step_size=PowerDecay(1.0, 0.0))
        stream(mixture, x, batch_size=batch_size, epochs=1)
        torch.testing.assert_close(mixture.scales, full.scales, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize("sizes", [[40], [25, 40, 10, 125, 1]])
def test_without_forgetting_the_statistics_are_cumulative_averages(structure, sizes):
    """With η = 1/t and responsibilities that are known, one pass is the Gaussian estimate of all rows so far."""
    x, labels, centres = clusters(800, K=2, d=2, dof=math.inf, distance=200.0, dtype=torch.float64)
    mixture = StudentTMixture(
        2, 2, **of(structure), dof=math.inf, init=centres, step_size=PowerDecay(1.0, 0.0), reg_covar=0.0,
        dtype=torch.float64,
    )  # fmt: skip
    start = 0
    while start < 800:
        size = sizes[start % len(sizes)]
        mixture.partial_fit(x[start : start + size])
        start += size
    whole = StudentTMixture(2, 2, **of(structure), dof=math.inf, init=centres, reg_covar=0.0, dtype=torch.float64).fit(
        x
    )
    torch.testing.assert_close(mixture.weights, torch.bincount(labels) / 800.0, check_dtype=False)
    for k in range(2):
        torch.testing.assert_close(mixture.means[k], x[labels == k].mean(0))
    torch.testing.assert_close(mixture.scales, whole.scales, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_constant_step_follows_a_drift():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    constant = StudentTMixture(2, 2, init=centres, step_size=0.05)
    decaying = StudentTMixture(2, 2, init=centres)
    for t in range(300):
        now = centres + torch.tensor([0.0, t / 30])
        labels = torch.randint(2, (20,), generator=generator)
        batch = now[labels] + torch.randn(20, 2, generator=generator)
        constant.partial_fit(batch)
        decaying.partial_fit(batch)
    assert (constant.means - now).norm(dim=1).max() < 1.0
    assert (decaying.means - now).norm(dim=1).min() > 2.0
    assert mean_scales(constant).max() < 2.0


def test_a_stream_goes_on_from_a_fit():
    x, _, centres = clusters(2000, K=3, d=2)
    mixture = StudentTMixture(3, 2, init=centres).fit(x[:1900])
    before = mean_scales(mixture)
    mixture.partial_fit(x[1900:])
    change = (mean_scales(mixture) / before - 1).abs().max()
    assert 0 < change < 0.15  # the old rows still count
    torch.testing.assert_close(mixture.running.total_weight, torch.tensor(2000.0, dtype=torch.float64))
    # Feeding the training rows again hardly moves an optimum.
    optimum = StudentTMixture(3, 2, init=centres, tol=1e-9).fit(x)
    again = copy.deepcopy(optimum).partial_fit(x)
    torch.testing.assert_close(again.means, optimum.means, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.scales, optimum.scales, atol=2e-3, rtol=1e-3)


def test_the_first_batches_are_not_lost():
    """What is kept until there are ten rows per component, and fitted with every call, is what one batch would give."""
    x, _, _ = clusters(100, K=3, d=2)
    at_once = StudentTMixture(3, 2, generator=0).partial_fit(x[:30])
    piecewise = StudentTMixture(3, 2, generator=0)
    for size, batch in enumerate(x[:30].split(1), start=1):
        piecewise.partial_fit(batch)
        assert bool(piecewise.fitted) == (size >= 3)
    assert_same_state(at_once, piecewise)
    assert piecewise.running.waiting is None
    assert_same_state(at_once.partial_fit(x[30:40]), piecewise.partial_fit(x[30:40]))


def test_fit_starts_a_stream_anew():
    x, _, _ = clusters(500, K=3, d=2)
    mixture = stream(StudentTMixture(3, 2, generator=0), x + 100, batch_size=50, epochs=1)
    assert_same_state(mixture.fit(x), StudentTMixture(3, 2, generator=0).fit(x))
    waiting = StudentTMixture(3, 2, generator=0).partial_fit(x[:2])
    assert_same_state(waiting.fit(x), StudentTMixture(3, 2, generator=0).fit(x))


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("structure", STRUCTURES)
def test_integer_weights_are_repeated_rows(structure):
    x, _, centres = clusters(2000, K=3, d=2, dtype=torch.float64)
    weight = torch.arange(2000) % 3 + 1
    settings = dict(**of(structure), learn_dof="component", dtype=torch.float64, init=centres)
    weighted, repeated = StudentTMixture(3, 2, **settings).fit(x), StudentTMixture(3, 2, **settings).fit(x)
    for batch, s in zip(x.split(50), weight.split(50)):
        weighted.partial_fit(batch, s)
        repeated.partial_fit(batch.repeat_interleave(s, 0))
    for name in ("weights", "means", "scales", "dof"):
        torch.testing.assert_close(getattr(weighted, name), getattr(repeated, name))


def test_the_unit_of_the_weights_does_not_matter():
    x, _, _ = clusters(600, K=3, d=2, dtype=torch.float64)
    weight = 0.5 + torch.rand(600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixtures = []
    for unit in (1.0, 1e-3, 1e4):
        mixture = StudentTMixture(3, 2, generator=0, dtype=torch.float64)
        for batch, s in zip(x.split(20), weight.split(20)):
            mixture.partial_fit(batch, s * unit)
        mixtures.append(mixture)
    for other in mixtures[1:]:
        torch.testing.assert_close(other.means, mixtures[0].means)
        torch.testing.assert_close(other.scales, mixtures[0].scales)


@pytest.mark.parametrize("seen", [0, 2, 15, 200])
def test_a_batch_of_weight_zero_is_no_batch(seen):
    x, _, _ = clusters(300, K=3, d=2)
    mixture = StudentTMixture(3, 2, generator=0)
    if seen:
        mixture.partial_fit(x[:seen])
    before = copy.deepcopy(mixture)
    mixture.partial_fit(x[:7] + 1e3, torch.zeros(7))
    assert_same_state(before, mixture)
    assert mixture.n_reseeded_ == 0


@pytest.mark.parametrize("seen", [0, 200])
def test_rows_of_weight_zero_are_not_there(seen):
    x, _, _ = clusters(300, K=3, d=2, dtype=torch.float64)
    weight = (torch.arange(100) % 4 > 0).double()
    mixtures = [StudentTMixture(3, 2, generator=0, dtype=torch.float64) for _ in range(2)]
    for mixture in mixtures:
        if seen:
            mixture.partial_fit(x[100:])
    mixtures[0].partial_fit(x[:100], weight)
    mixtures[1].partial_fit(x[:100][weight > 0])
    torch.testing.assert_close(mixtures[0].means, mixtures[1].means)
    torch.testing.assert_close(mixtures[0].scales, mixtures[1].scales)


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    ("at", "structure", "how"),
    in_turn([0, 1, 5, 18, 18], ["diag", "full", "tied", "spherical", "lowrank"], ["save", "state_dict"]),
)
def test_resuming_is_exact_at_any_time(structure, how, at, tmp_path):
    """Batches of 2 rows for 3 components: after 1 not fitted, after 5 warming up, from 15 on streaming."""
    x, _, _ = clusters(40, K=3, d=2)
    settings = dict(**of(structure), learn_dof="component", generator=0)
    batches = x.split(2)
    straight, first = StudentTMixture(3, 2, **settings), StudentTMixture(3, 2, **settings)
    for batch in batches[:at]:
        straight.partial_fit(batch)
        first.partial_fit(batch)
    if how == "save":
        first.save(tmp_path / "mixture")
        second = StudentTMixture.load(tmp_path / "mixture")
    else:
        torch.save(first.state_dict(), tmp_path / "state")
        second = StudentTMixture(3, 2, **settings)
        second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert_same_state(straight, second)
    for batch in batches[at:]:
        straight.partial_fit(batch)
        second.partial_fit(batch)
    assert_same_state(straight, second)


def test_a_state_with_a_stream_replaces_one_without_and_back():
    x, _, _ = clusters(200, K=3, d=2)
    states = {
        "fresh": StudentTMixture(3, 2, generator=0),
        "waiting": StudentTMixture(3, 2, generator=0).partial_fit(x[:2]),
        "warming": StudentTMixture(3, 2, generator=0).partial_fit(x[:9]),
        "streaming": StudentTMixture(3, 2, generator=0).partial_fit(x[:100]),
    }
    for source in states.values():
        for target in states.values():
            taken = copy.deepcopy(target)
            taken.load_state_dict(source.state_dict())
            assert_same_state(source, taken)
            assert_same_state(copy.deepcopy(source).partial_fit(x[100:110]), taken.partial_fit(x[100:110]))


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize("seen", [0, 2, 15, 200, "parameters"])
@pytest.mark.parametrize(
    ("batch", "weight", "message"),
    [
        (torch.tensor([[0.0, 0.0], [0.0, math.nan]]), None, "row 1 holds nan in column 1"),
        (torch.zeros(2, 3), None, "data has 3 features, but the mixture has n_features=2"),
        (torch.zeros(0, 2), None, "data is empty"),
        (torch.zeros(2), None, "data must be two-dimensional"),
        (torch.zeros(2, 2), torch.ones(3), "sample_weight has 3 entries, but the data has 2 rows"),
        (torch.zeros(2, 2), torch.tensor([1.0, -1.0]), "sample_weight must be .* entry 1 is -1.0"),
    ],
)
def test_a_wrong_batch_changes_nothing(seen, batch, weight, message):
    x, _, _ = clusters(300, K=3, d=2)
    mixture = StudentTMixture(3, 2, generator=0)
    if seen == "parameters":
        mixture = StudentTMixture.from_parameters([1.0, 1.0, 1.0], x[:3], torch.eye(2).expand(3, 2, 2), generator=0)
    elif seen:
        mixture.partial_fit(x[:seen])
    before = copy.deepcopy(mixture)
    for wrong in (batch, batch.numpy()):
        with pytest.raises(ValueError, match=message):
            mixture.partial_fit(wrong, weight)
        assert_same_state(before, mixture)


def test_a_component_that_died_is_started_anew():
    x, _, _ = clusters(400, K=2, d=2, dof=math.inf)
    # Two components, one so far away that no row is its own, as if its cluster had vanished from the stream.
    mixture = StudentTMixture(2, 2, dof=math.inf, step_size=0.2, generator=0).fit(
        torch.cat([x, x[:100] / 10 + torch.tensor([1e3, 0.0])])
    )
    assert (mixture.means[:, 0] > 500).sum() == 1
    for batch in x.repeat(3, 1).split(10):
        mixture.partial_fit(batch)
    assert mixture.n_reseeded_ >= 1
    assert mixture.means.norm(dim=1).max() < 20
    two = StudentTMixture(2, 2, dof=math.inf, generator=0).fit(x)
    assert mixture.score(x) == pytest.approx(two.score(x), abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("structure", "dof"), in_turn(STRUCTURES, [4.0, math.inf]))
@pytest.mark.filterwarnings("ignore:the scale matrix:RuntimeWarning")
def test_degenerate_streams_stay_finite(structure, dof):
    settings = dict(**of(structure), dof=dof, generator=0)
    streams = {
        "constant": [torch.ones(7, 3)] * 3,
        "zeros": [torch.zeros(7, 3)] * 3,
        "two points": [torch.tensor([[0.0] * 3, [1.0] * 3])] * 22,
        "one row at a time": list(torch.randn(45, 3, generator=torch.Generator().manual_seed(0)).split(1)),
        "outlier": [torch.randn(10, 3, generator=torch.Generator().manual_seed(0))] * 5
        + [torch.full((10, 3), 1e8)] * 2,
        "integers": [torch.arange(30).reshape(10, 3)] * 8,
    }
    for name, batches in streams.items():
        mixture = StudentTMixture(4, 3, **settings)
        for batch in batches:
            mixture.partial_fit(batch)
        assert mixture.log_prob(batches[0]).isfinite().all(), name
        assert mixture.scales.isfinite().all(), name
        assert mixture.weights.sum().item() == pytest.approx(1, abs=1e-5), name


def test_arrays_and_tensors_of_any_dtype_are_the_same_batch():
    x, _, _ = clusters(100, K=3, d=2)
    x = (x * 4).round()
    expected = StudentTMixture(3, 2, generator=0).partial_fit(x[:50]).partial_fit(x[50:])
    for convert in (lambda t: t.numpy(), lambda t: t.double(), lambda t: t.bfloat16(), lambda t: t.long(),
                    lambda t: t.numpy().astype(np.int16), lambda t: t.clone().requires_grad_()):  # fmt: skip
        mixture = StudentTMixture(3, 2, generator=0).partial_fit(convert(x[:50])).partial_fit(convert(x[50:]))
        torch.testing.assert_close(mixture.means, expected.means)
        torch.testing.assert_close(mixture.scales, expected.scales)


# ---------------------------------------------------------------- step sizes


@pytest.mark.parametrize(("exponent", "offset"), [(1.0, 0.0), (1.0, 2.0), (0.6, 0.0), (0.8, 5.0)])
def test_step_sizes_fall_from_one_as_stepwise_em_needs(exponent, offset):
    step = PowerDecay(exponent, offset)
    rates = [step(t) for t in range(1, 10_001)]
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    # Σ η diverges and Σ η² converges: η is of the order t^−κ with κ in (0.5, 1].
    assert math.log(step(1e12) / step(1e10)) / math.log(100) == pytest.approx(-exponent, abs=1e-6)
