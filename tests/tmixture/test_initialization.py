"""Starts: reproducible, spread out, exactly what was given; the best of several; the continuation of an earlier fit."""

import numpy as np
import pytest
import torch
from benchmarks.starts import compare

from tmixture import StudentTMixture, initialization
from tmixture.data.chunks import Chunk
from tmixture.maximization import Rules
from tmixture.scales import STRUCTURES as SCALES

from . import naive
from .helpers import STRUCTURES, TIED, assert_same_parameters, from_model, of, parameters

NAMED = list(initialization.CENTRES)


@pytest.fixture(scope="module")
def blobs():
    """Six tight blobs of very different sizes, far apart, and their labels."""
    rng = np.random.default_rng(0)
    centres = 1000 * np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]])
    labels = np.repeat(np.arange(6), [400, 200, 100, 50, 30, 20])
    return torch.as_tensor(centres[labels] + rng.normal(size=(800, 2))), torch.as_tensor(labels)


def start(x, init, seed=0, **settings):
    """The mixture that EM starts from, or all but: one iteration is the least that `fit` does."""
    K = settings.pop("K", 6)
    arguments = {"dtype": torch.float64, "generator": seed, "max_iter": 1, **settings}
    return StudentTMixture(K, x.shape[1], init=init, **arguments).fit(x)


@pytest.mark.parametrize("init", NAMED)
@pytest.mark.parametrize("as_generator", [False, True])
def test_a_seed_decides_everything(blobs, init, as_generator):
    x, _ = blobs
    seeds = [torch.Generator().manual_seed(s) if as_generator else s for s in (3, 3, 4, 5, 6)]
    fits = [start(x + 30 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), init, s) for s in seeds]
    assert_same_parameters(fits[0], fits[1], rtol=0)
    assert any(not torch.allclose(fits[0].means, other.means) for other in fits[2:])
    if as_generator:
        state = seeds[0].get_state()
        assert not torch.equal(state, torch.Generator().manual_seed(3).get_state())  # it has moved on


@pytest.mark.parametrize("init", NAMED)
def test_the_global_generator_is_used_without_a_seed(blobs, init):
    x, _ = blobs
    fits = []
    for _ in range(2):
        torch.manual_seed(11)
        fits.append(start(x, init, None))
    assert_same_parameters(*fits, rtol=0)


def test_kmeans_plus_plus_visits_every_blob(blobs):
    x, labels = blobs
    weight = torch.ones(len(x))
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        centres = initialization.kmeans_plus_plus(x, weight, 6, generator)
        found = {int(labels[(x == centre).all(1)][0]) for centre in centres}
        assert found == set(range(6))
    # Random rows do not: the sizes of the blobs are too unequal.
    drawn = initialization.random_rows(x, weight, 6, torch.Generator().manual_seed(0))
    assert len({int(labels[(x == row).all(1)][0]) for row in drawn}) < 6


@pytest.mark.parametrize("draw", [initialization.random_rows, initialization.kmeans_plus_plus])
def test_rows_without_weight_are_never_drawn(blobs, draw):
    x, labels = blobs
    weight = (labels == 3).double() + 2 * (labels == 5)
    for seed in range(10):
        rows = draw(x, weight, 6, torch.Generator().manual_seed(seed))
        assert all(int(labels[(x == row).all(1)][0]) in (3, 5) for row in rows)
        assert len(rows.unique(dim=0)) == 6


def test_kmeans_plus_plus_of_fewer_places_than_centres():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(5, 1)
    centres = initialization.kmeans_plus_plus(x, torch.ones(10), 4, torch.Generator().manual_seed(0))
    assert centres.shape == (4, 2)
    assert centres.unique(dim=0).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("block", [2**23, 100])
def test_what_devices_without_faiss_take_is_the_same_algorithm(block, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(500, 3, generator=generator), torch.rand(500, generator=generator)
    seeds = initialization.kmeans_plus_plus(x, weight, 8, torch.Generator().manual_seed(1))
    expected = initialization.kmeans(x, weight, 8, torch.Generator().manual_seed(1))
    monkeypatch.setattr(initialization, "DISTANCE_ELEMENTS", block)
    torch.testing.assert_close(initialization.lloyd(x, weight, seeds), expected, rtol=1e-4, atol=1e-5)


def test_a_centre_that_loses_its_rows_stays_where_it_is():
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    centres = initialization.lloyd(x, torch.tensor([1.0, 3.0, 1.0, 1.0]), torch.tensor([[0.0], [10.0], [99.0]]))
    torch.testing.assert_close(centres, torch.tensor([[0.75], [10.5], [99.0]]))


def test_kmeans_centres_are_weighted_means_of_their_rows(blobs):
    """The fixed point of Lloyd's algorithm."""
    x, labels = blobs
    weight = 1 + labels.double()
    centres = initialization.kmeans(x, weight, 6, torch.Generator().manual_seed(0))
    nearest = initialization.nearest(x, centres)
    for k in nearest.unique():
        rows = nearest == k
        mean = (weight[rows, None] * x[rows]).sum(0) / weight[rows].sum()
        np.testing.assert_allclose(centres[k], mean, atol=0.05)  # twenty iterations, in float32


def test_nearest_is_the_smallest_distance():
    generator = torch.Generator().manual_seed(0)
    x, centres = torch.randn(500, 7, generator=generator), torch.randn(9, 7, generator=generator)
    assert torch.equal(initialization.nearest(x, centres), torch.cdist(x, centres).argmin(1))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_given_labels_are_where_a_fit_starts(blobs, structure):
    """One Gaussian M-step from them, then EM: with blobs this tight, the classes themselves."""
    x, labels = blobs
    mixture = start(x, "kmeans", **of(structure), dof=float("inf"))
    mixture.fit(x, responsibilities=labels)
    means = np.array([x[labels == k].mean(0).numpy() for k in range(6)])
    np.testing.assert_allclose(mixture.means, means, rtol=1e-9)
    np.testing.assert_allclose(mixture.weights, labels.bincount().double() / 800, rtol=1e-9)
    assert torch.equal(mixture.predict(x), labels)


def test_given_responsibilities_are_the_first_e_step():
    x, _ = naive.heavy_tailed(K=3, N=200)
    rng = np.random.default_rng(0)
    r = rng.dirichlet([1.0] * 3, size=200)
    mixture = StudentTMixture(
        3, 2, covariance_type="full", dof=7.0, reg_covar=0.0, tol=0.0, max_iter=3, dtype=torch.float64
    )
    mixture.fit(x, responsibilities=r)
    n = r.sum(0)
    means = (r.T @ x) / n[:, None]
    scatter = np.array([((x - m) * w[:, None]).T @ (x - m) for m, w in zip(means, r.T)])
    model = naive.Model(n / 200, means, scatter / n[:, None, None], np.full(3, 7.0))
    for _ in range(3):
        model = naive.em_step(x, model, "full")
    assert_same_parameters(mixture, model, rtol=1e-8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_given_means_are_where_a_fit_starts(blobs, structure):
    """Their order survives, and so do the clusters around them."""
    x, labels = blobs
    order = [4, 2, 0, 5, 1, 3]
    means = torch.stack([x[labels == k].mean(0) for k in order]) + 3.0
    mixture = start(x, means, **of(structure), max_iter=20)
    assert torch.equal(torch.tensor(order)[mixture.predict(x)], labels)
    assert float((mixture.means - (means - 3.0)).abs().max()) < 1


@pytest.mark.parametrize("init", NAMED)
def test_the_best_of_several_starts_is_kept(init):
    """Starts draw on one generator, so n of them contain the first m < n: the likelihood can only rise."""
    x = naive.draw(naive.random_model(16, 2, "diag", spread=4.0), 400)

    def likelihood(n_init):
        settings = dict(generator=5, max_iter=15, reg_covar=0.0, dtype=torch.float64)
        mixture = StudentTMixture(16, 2, init=init, n_init=n_init, **settings).fit(x)
        assert mixture.history_[-1] == pytest.approx(mixture.score(x), rel=1e-6)
        return mixture.history_[-1]

    values = [likelihood(n) for n in (1, 2, 4, 8)]
    assert values == sorted(values)
    assert values[-1] > values[0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_warm_start_goes_on_where_the_last_fit_ended(structure):
    x, model = naive.heavy_tailed(d=3, N=100, structure=structure)
    in_one_go = from_model(model, structure, learn_dof="component", max_iter=9).fit(x)
    in_two = from_model(model, structure, learn_dof="component", max_iter=4).fit(x)
    in_two.max_iter = 5
    in_two.fit(x)
    assert_same_parameters(in_two, in_one_go, rtol=1e-12)
    cold = from_model(model, structure, learn_dof="component", max_iter=5, warm_start=False, generator=0).fit(x)
    assert not np.allclose(parameters(cold)["means"], parameters(in_two)["means"])


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_cluster_of_one_row_does_not_start_as_a_spike(structure):
    rng = np.random.default_rng(0)
    x = torch.as_tensor(np.concatenate([rng.normal(size=(300, 3)), [[4.0, 4.0, 4.0]]]))
    labels = torch.nn.functional.one_hot(torch.tensor([0] * 300 + [1]))
    unit = SCALES[structure].diagonal(torch.ones(2, 3))
    base = initialization.uniform(x[:2], unit, torch.full((2,), 4.0))
    one = torch.ones(3, dtype=torch.float64)
    rules = Rules("px", False, (0.5, 200.0), 1e-6 * one)
    begin = initialization.from_responsibilities([Chunk(x, None, labels)], base, rules, one, torch.float64)
    variances = torch.linalg.eigvalsh(begin.scale.dense(2, 3))
    assert float(variances.min()) > 0.2
    if structure not in (*TIED, "lowrank"):  # the large one is the maximum likelihood all the same
        expected = naive.within(np.cov(x[:300].T, ddof=0)[None], structure)[0]
        np.testing.assert_allclose(begin.scale.dense(2, 3)[0], expected, rtol=1e-4, atol=1e-6)


def test_the_potential_is_its_definition(monkeypatch):
    monkeypatch.setattr(initialization, "DISTANCE_ELEMENTS", 21)  # blocks of three rows
    rng = np.random.default_rng(0)
    x, mass, closest, candidates = (
        rng.normal(size=(20, 3)),
        rng.uniform(size=20),
        rng.uniform(size=20),
        rng.normal(size=(7, 3)),
    )
    expected = [sum(m * min(c, ((row - new) ** 2).sum()) for m, c, row in zip(mass, closest, x)) for new in candidates]
    tensors = (torch.as_tensor(array) for array in (x, mass, closest, candidates))
    np.testing.assert_allclose(initialization.potential(*tensors), expected, rtol=1e-12)


@pytest.mark.slow
def test_the_first_fit_is_as_good_as_that_of_scikit_learn():
    """Of clusters that overlap a little, over problems and seeds; benchmarks/STARTS.md has more of them."""
    problems = [(4, 16, 500, 4.0), (10, 8, 1000, 2.0), (20, 64, 2000, 1.0), (50, 8, 4000, 3.0)]
    numbers = np.array([compare(*problem, seed, torch.device("cpu")) for problem in problems for seed in range(4)])
    ours, theirs, likelihood, default = numbers.mean(0)
    assert min(ours, default) >= theirs
    assert likelihood >= 0
