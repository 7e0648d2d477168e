"""Truncated EM: exact with all components as candidates, and a bound that never falls with fewer."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tmixture import StudentTMixture, candidates, initialization, tiles
from tmixture.data import chunks

from . import naive
from .helpers import LEARN_DOF, STRUCTURES, assert_same_parameters, from_model, in_turn, of

pytestmark = pytest.mark.filterwarnings("ignore::tmixture.ConvergenceWarning", "ignore:components:RuntimeWarning")


def clustered(N=400, K=12, d=3, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    noise = spread * torch.randn(N, d, generator=generator, dtype=torch.float64)
    return centres[torch.randint(K, (N,), generator=generator)] + noise


def structureless(N, d, seed):
    """Directions of noise that went through a random network: rows without any clusters."""
    generator = torch.Generator().manual_seed(seed)
    inner, outer = torch.randn(8, 16, generator=generator), torch.randn(16, d, generator=generator)
    x = torch.tanh(torch.randn(N, 8, generator=generator) @ inner) @ outer
    return torch.nn.functional.normalize(x, dim=1).double()


def fit(x, n_candidates, *, K=12, weight=None, **settings):
    arguments = {"generator": 0, "init": "kmeans++", "max_iter": 8, "tol": 0.0, "dtype": torch.float64, **settings}
    return StudentTMixture(K, x.shape[1], max_candidates=n_candidates, **arguments).fit(x, weight)


@pytest.mark.parametrize(
    ("structure", "learn_dof", "chunk_size"), in_turn([*STRUCTURES, *STRUCTURES], LEARN_DOF, [None, 57])
)
def test_all_components_as_candidates_are_exact_em(structure, learn_dof, chunk_size):
    x, weight = clustered(), torch.rand(400, generator=torch.Generator().manual_seed(1))
    settings = {**of(structure), "learn_dof": learn_dof, "K": 6}
    exact = fit(x, None, weight=weight, **settings)
    truncated = fit(x, 6, weight=weight, chunk_size=chunk_size, **settings)
    assert_same_parameters(truncated, exact, rtol=1e-8)
    np.testing.assert_allclose(truncated.history_, exact.history_, rtol=1e-10)
    assert truncated.disagreement_ == 0
    assert exact.disagreement_ is None


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_step_is_that_of_the_nearest_components_alone(structure):
    """Statistics by brute force: each row explained by the C means nearest to the mean nearest to it, and no others."""
    model = naive.random_model(7, 3, structure, dof=4.0, spread=2.0)
    x = naive.draw(model, 60)
    home = ((x[:, None] - model.means) ** 2).sum(2).argmin(1)
    near = ((model.means[:, None] - model.means) ** 2).sum(2).argsort(1)[:, :3]
    joint = naive.joint(x, model)
    truncated = np.full_like(joint, -np.inf)
    np.put_along_axis(truncated, near[home], np.take_along_axis(joint, near[home], 1), 1)
    r = np.exp(truncated - logsumexp(truncated, axis=1, keepdims=True))
    delta = np.array([[naive.distance(row, mu, S) for mu, S in zip(model.means, model.scales)] for row in x])
    ru = r * (4 + 3) / (4 + delta)

    mixture = from_model(model, structure, max_candidates=3, max_iter=1).fit(torch.as_tensor(x))
    assert mixture.history_[0] == pytest.approx(logsumexp(truncated, axis=1).mean(), rel=1e-10)
    np.testing.assert_allclose(mixture.weights, r.mean(0), rtol=1e-9)
    np.testing.assert_allclose(mixture.means, ru.T @ x / ru.sum(0)[:, None], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("n_candidates", [1, 2, 5])
@pytest.mark.parametrize("dof", [4.0, float("inf")])
@pytest.mark.parametrize("seed", range(2))
def test_the_bound_never_falls_and_never_exceeds_the_likelihood(n_candidates, dof, seed):
    for x in (structureless(300, 6, seed), clustered(300, spread=3.0, seed=seed)):
        mixture = fit(x, n_candidates, K=10, dof=dof, init="random", max_iter=20)
        if mixture.n_reseeded_ == 0:
            assert np.diff(mixture.history_).min() > -1e-10
        assert mixture.history_[-1] <= mixture.score(x) + 1e-10


def test_a_move_that_lowers_the_bound_is_taken_back(monkeypatch):
    """Where neighbours are drawn at random the bound rises all the same."""
    generator = torch.Generator().manual_seed(0)
    calls = []

    def arbitrary(means, count):
        calls.append(count)
        others = torch.rand(len(means), len(means), generator=generator).fill_diagonal_(2)
        return others.topk(count).indices

    monkeypatch.setattr(candidates, "neighbours", arbitrary)
    passes = []
    run = candidates.TruncatedExpectation._pass
    monkeypatch.setattr(
        candidates.TruncatedExpectation, "_pass", lambda self, *given: passes.append(run(self, *given)) or passes[-1]
    )
    mixture = fit(clustered(spread=3.0), 3, max_iter=40)
    bounds = [float(statistics.log_likelihood) for statistics, _ in passes]
    assert len(calls) >= 4
    assert len(passes) > len(mixture.history_)
    assert np.diff(bounds).min() < -1
    assert mixture.n_reseeded_ == 0
    assert np.diff(mixture.history_).min() > -1e-10


@pytest.mark.parametrize("structure", STRUCTURES)
def test_distinct_clusters_need_few_candidates(structure):
    x = clustered(spread=0.05)
    exact, truncated = (fit(x, C, **of(structure)) for C in (None, 3))
    assert_same_parameters(truncated, exact, rtol=1e-6)
    assert truncated.history_[-1] == pytest.approx(exact.history_[-1], abs=1e-6)
    assert truncated.disagreement_ == 0


def test_disagreement_is_the_share_of_rows_with_a_better_component():
    """A single candidate stays what it was at the start: the nearest mean."""
    model = naive.random_model(5, 2, "diag", dof=4.0, spread=1.0)
    x = torch.as_tensor(naive.draw(model, 300))
    mixture = from_model(model, "diag", max_candidates=1, max_iter=1).fit(x)
    nearest = torch.cdist(x, torch.as_tensor(model.means)).argmin(1)
    differ = float((mixture.predict(x) != nearest).double().mean())
    assert 0 < differ < 1
    assert mixture.disagreement_ == pytest.approx(differ, abs=1e-6)


def test_results_do_not_depend_on_how_the_data_is_stored(tmp_path):
    x = clustered(spread=2.0)
    np.save(tmp_path / "x.npy", x.numpy())
    for i, part in enumerate(x.split([150, 1, 249])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    reference = fit(x, 4, max_iter=4)
    for data in (
        tmp_path / "x.npy",
        [tmp_path / f"{i}.npy" for i in range(3)],
        torch.utils.data.DataLoader(x, batch_size=77),
    ):
        for size in (None, 64):
            settings = {"generator": 0, "init": "kmeans++", "max_iter": 4, "tol": 0.0, "dtype": torch.float64}
            mixture = StudentTMixture(12, 3, max_candidates=4, chunk_size=size, **settings).fit(data)
            assert_same_parameters(mixture, reference, rtol=1e-9)
            assert mixture.disagreement_ == reference.disagreement_


def test_rows_without_weight_and_repeated_rows():
    """Integer weights are repeated rows; a weight of zero is no row."""
    model = naive.random_model(6, 3, "diag", dof=4.0, spread=4.0)
    x, weight = torch.as_tensor(naive.draw(model, 200)), torch.arange(200) % 3
    weighted, repeated = (from_model(model, "diag", max_candidates=3, max_iter=5) for _ in range(2))
    weighted.fit(x, weight)
    repeated.fit(x.repeat_interleave(weight, dim=0))
    assert weighted.n_reseeded_ == repeated.n_reseeded_ == 0
    assert_same_parameters(weighted, repeated, rtol=1e-8)


def test_float32_is_float64_to_its_precision():
    x = clustered(spread=2.0).float()
    single, double = (fit(x, 5, dtype=dtype, max_iter=5) for dtype in (torch.float32, torch.float64))
    assert_same_parameters(single, double, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16])
def test_rows_of_any_dtype(dtype):
    x = (10 * clustered(spread=2.0) + 128).clamp(0, 255).to(dtype)
    one, other = (fit(rows, 4, max_iter=3) for rows in (x, x.double()))
    assert_same_parameters(one, other, rtol=1e-9)


def test_a_component_without_rows_is_started_anew():
    x = clustered()
    start = torch.cat([x[:10], torch.full((2, 3), 1e3, dtype=torch.float64)])
    mixture = fit(x, 3, init=start, max_iter=30)
    assert mixture.n_reseeded_ > 0
    assert (mixture.weights * len(x) > 0.5).all()
    assert all(tensor.isfinite().all() for tensor in mixture.state_dict().values())


def test_the_best_of_several_starts_is_kept():
    x = clustered(spread=2.0)
    one, several = (fit(x, 4, n_init=n, init="random") for n in (1, 4))
    assert several.history_[-1] >= one.history_[-1]
    assert several.disagreement_ is not None


def test_what_is_asked_and_streamed_stays_exact(tmp_path):
    x = clustered(spread=3.0)
    mixture = fit(x, 2)
    mixture.save(tmp_path / "mixture.safetensors")
    loaded = StudentTMixture.load(tmp_path / "mixture.safetensors")
    assert loaded.max_candidates == 2
    assert loaded.disagreement_ == mixture.disagreement_
    exact = StudentTMixture(12, 3, generator=0, dtype=torch.float64)
    exact.load_state_dict(mixture.state_dict())
    assert torch.equal(mixture.log_prob(x), exact.log_prob(x))
    assert_same_parameters(mixture.partial_fit(x[:50]), exact.partial_fit(x[:50]), rtol=1e-12)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that anything returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if isinstance(leaf, torch.Tensor)
        ]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_nothing_is_as_large_as_rows_times_components(init, monkeypatch):
    for module, name in (
        (chunks, "CHUNK_ELEMENTS"),
        (candidates, "CHUNK_ELEMENTS"),
        (initialization, "DISTANCE_ELEMENTS"),
        (tiles, "CACHED_ELEMENTS"),
    ):
        monkeypatch.setattr(module, name, 2**14)
    N, K, d = 3000, 100, 2
    x = clustered(N, K, d, spread=0.2)
    with Largest() as largest:
        fit(x, 4, K=K, init=init, max_iter=2)
    assert largest.elements < 10 * N < N * K / 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "max_candidates must be a positive integer, got 0"),
        (2.0, r"max_candidates must be a positive integer, got 2\.0"),
        (True, "max_candidates must be a positive integer, got True"),
        (4, "max_candidates must be at most n_components=3, got 4"),
    ],
)
def test_numbers_of_candidates_that_make_no_sense(value, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(3, 2, max_candidates=value)


class Unsteady:
    """Batches of the given rows, each list for one pass; the last one for all that follow."""

    def __init__(self, x, *orders):
        self.x, self.orders = x, list(orders)

    def __iter__(self):
        yield from self.x[self.orders.pop(0) if len(self.orders) > 1 else self.orders[0]].split(50)


def test_rows_must_keep_their_order():
    x = clustered(spread=0.1)
    mixture = StudentTMixture(12, 3, max_candidates=2, init="random", generator=0)
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    order, other = torch.arange(400), torch.randperm(400, generator=torch.Generator().manual_seed(0))
    for data, message in (
        (torch.utils.data.DataLoader(x, batch_size=50, shuffle=True), "max_candidates .* keeps the order"),
        (Unsteady(x, order, order, order, other), "same order at every iteration, .* row 0 is not"),
        (Unsteady(x, order[:350], order), "350 rows first and at least 400 now"),
        (Unsteady(x, order, order, order[:350]), "400 rows first and 350 now"),
    ):
        with pytest.raises(ValueError, match=message):
            mixture.fit(data)
        assert all(torch.equal(tensor, before[name]) for name, tensor in mixture.state_dict().items())
        assert mixture.history_ == []
        assert mixture.disagreement_ is None
