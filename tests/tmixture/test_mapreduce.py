"""Fits by the sums of parts: whatever the parts, the result is that of `fit`."""

import pickle
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch

from tmixture import Prior, StudentTMixture
from tmixture.mapreduce import MapReduceFit, Summary
from tmixture.reservoir import Reservoir

from .helpers import STRUCTURES

D, K = 4, 3
generator = torch.Generator().manual_seed(0)
ROWS = torch.cat([3 * torch.randn(D, generator=generator) + torch.randn(400, D, generator=generator) for _ in range(K)])
ROWS = ROWS[torch.randperm(len(ROWS), generator=generator)]
SPLITS = {"one": [1200], "equal": [300] * 4, "unequal": [1, 700, 0, 99, 400]}


def make(structure="diag", **settings):
    rank = {"rank": 2} if structure == "lowrank" else {}
    return StudentTMixture(K, D, covariance_type=structure, generator=0, **rank, **settings)


def run(mixture, parts, weights=None, order=None, task=lambda task: task):
    """The fit, whose parts arrive in some order."""
    fit, order = MapReduceFit(mixture), list(range(len(parts)) if order is None else order)
    weights = [None] * len(parts) if weights is None else weights
    draw = task(fit.draw)
    fit.begin(reduce(add, [draw(parts[i], weights[i], part=i) for i in order]))
    while not fit.is_over:
        summarize = task(fit.summarize)
        fit.update(sum(summarize(parts[i], weights[i]) for i in order))
    return fit.mixture


def check_same(found, expected, **tolerance):
    assert (found.n_iter_, found.converged_) == (expected.n_iter_, expected.converged_)
    np.testing.assert_allclose(found.history_, expected.history_, rtol=1e-9)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, **tolerance, msg=name)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_parts_do_not_matter(structure, split):
    """Neither how the rows are divided, nor the order in which the parts arrive."""
    parts = ROWS.split(SPLITS[split])
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(1)).tolist()
    check_same(run(make(structure), parts, order=order), make(structure).fit(ROWS))


@pytest.mark.parametrize(
    "settings",
    [
        {"dof": float("inf")},
        {"init": "kmeans++"},
        {"init": "random", "max_iter": 3, "tol": 0},
        {"prior": Prior(weight_rows=2, mean_rows=1, scale_rows=3), "reg_covar": 1e-3},
        {"background": True},
        {"dtype": torch.float64, "chunk_size": 7},
    ],
)
def test_settings_hold(settings):
    check_same(run(make(**settings), ROWS.split(500)), make(**settings).fit(ROWS))


def test_weights_of_any_unit_in_each_part():
    weights = torch.rand(len(ROWS), generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 4
    weights[:300] *= 1e-3
    expected = make().fit(ROWS, weights)
    check_same(run(make(), ROWS.split(300), weights.split(300)), expected)


def test_missing_values():
    rows = ROWS.masked_fill(torch.rand(ROWS.shape, generator=torch.Generator().manual_seed(3)) < 0.1, float("nan"))
    check_same(run(make(allow_missing=True), rows.split(500)), make(allow_missing=True).fit(rows))


def test_a_learned_dof_arrives_where_a_fit_does():
    """It takes longer, as it never leaps."""
    settings = {"learn_dof": "shared", "tol": 1e-9, "max_iter": 2000}
    found, expected = run(make(**settings), ROWS.split(500)), make(**settings).fit(ROWS)
    assert found.history_[-1] == pytest.approx(expected.history_[-1], abs=1e-6)
    torch.testing.assert_close(found.dof, expected.dof, rtol=0.05, atol=0)
    torch.testing.assert_close(found.means, expected.means, rtol=1e-3, atol=1e-3)


def test_tasks_and_what_they_return_travel_as_bytes():
    """To another process and back; and summaries hold nothing that executes."""

    def travelled(value):
        return pickle.loads(pickle.dumps(value))

    check_same(run(make("full"), ROWS.split(500), task=travelled), make("full").fit(ROWS))
    fit = MapReduceFit(make("full"))
    fit.begin(fit.draw(ROWS))
    assert len(pickle.dumps(fit.summarize)) < 20_000
    summary = fit.summarize(ROWS)
    content = summary.to_bytes()
    again = Summary.from_bytes(content)
    assert again.under == summary.under
    for name, tensor in summary.statistics.tensors().items():
        assert torch.equal(again.statistics.tensors()[name], tensor)
        assert torch.equal(travelled(summary).statistics.tensors()[name], tensor)
    assert len(content) < 8 * (K * D * D + K * D + 4 * K + 10) + 2000
    for wrong in (b"", b"nonsense", content[: len(content) // 2]):
        with pytest.raises(ValueError, match="content must be that of a Summary"):
            Summary.from_bytes(wrong)
    newer = content.replace(b"tmixture.Summary/1", b"tmixture.Summary/2")
    with pytest.raises(ValueError, match=r"tmixture.Summary/1, got tmixture.Summary/2"):
        Summary.from_bytes(newer)


def test_files_are_parts_as_good_as_rows(tmp_path):
    paths = []
    for i, part in enumerate(ROWS.split(500)):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], part.numpy())
    check_same(run(make(), paths), make().fit(ROWS))


def test_several_mixtures_learn_from_one_pass():
    """Restarts, or numbers of components: their tasks run on the same part."""
    fits = [MapReduceFit(StudentTMixture(k, D, generator=k, max_iter=4, tol=0)) for k in (2, 3, 5)]
    parts = ROWS.split(500)
    for fit in fits:
        fit.begin(reduce(add, [fit.draw(part, part=i) for i, part in enumerate(parts)]))
    while not all(fit.is_over for fit in fits):
        tasks = [fit.summarize for fit in fits]
        for fit, *summaries in zip(fits, *([task(part) for task in tasks] for part in parts)):
            fit.update(sum(summaries))
    for fit, k in zip(fits, (2, 3, 5)):
        check_same(fit.mixture, StudentTMixture(k, D, generator=k, max_iter=4, tol=0).fit(ROWS))


def test_a_fit_goes_on_from_a_mixture_that_was_saved(tmp_path):
    fit = MapReduceFit(make(max_iter=50, tol=1e-9))
    fit.begin(fit.draw(ROWS))
    for _ in range(3):
        fit.update(fit.summarize(ROWS))
    assert fit.mixture.n_iter_ == 2
    fit.mixture.save(tmp_path / "m.safetensors")
    mixture = StudentTMixture.load(tmp_path / "m.safetensors")
    mixture.warm_start = True
    found = run(mixture, ROWS.split(500))
    torch.testing.assert_close(found.means, make(max_iter=50, tol=1e-9).fit(ROWS).means, rtol=1e-4, atol=1e-4)


def test_more_rows_than_a_reservoir_holds_are_drawn_evenly(monkeypatch):
    monkeypatch.setattr("tmixture.sampling.sample_size", lambda *_: 100)
    fit = MapReduceFit(make())
    parts = ROWS.split(SPLITS["unequal"])
    drawn = reduce(add, [fit.draw(part, part=i) for i, part in enumerate(parts)])
    assert (len(drawn.x), drawn.rows) == (100, 1200)
    shares = torch.bincount(drawn.part, minlength=5) / 100
    torch.testing.assert_close(shares, torch.tensor(SPLITS["unequal"]) / 1200, atol=0.15, rtol=0)
    again = reduce(add, [fit.draw(parts[i], part=i) for i in (3, 1, 4, 0, 2)])
    assert torch.equal(drawn.sample().x, again.sample().x)


def test_what_does_not_belong_together_is_refused():
    fit = MapReduceFit(make())
    with pytest.raises(RuntimeError, match="has not begun"):
        _ = fit.summarize
    with pytest.raises(ValueError, match="data has 2 rows with positive weight, but n_components=3"):
        fit.begin(fit.draw(ROWS[:2]))
    with pytest.raises(ValueError, match="drawn must be a sum of what `draw` returns, got Tensor"):
        fit.begin(ROWS)
    fit.begin(fit.draw(ROWS))
    with pytest.raises(ValueError, match="summary must be a sum of what `summarize` returns, got int"):
        fit.update(0)
    first = fit.summarize(ROWS)
    before = {name: tensor.clone() for name, tensor in fit.mixture.state_dict().items()}
    with pytest.raises(ValueError, match="at least one row"):
        fit.update(fit.summarize(ROWS[:0]))
    fit.update(first)
    assert not torch.equal(fit.mixture.means, before["means"])
    with pytest.raises(ValueError, match="older task"):
        fit.update(first)
    with pytest.raises(ValueError, match="older task"):
        _ = first + fit.summarize(ROWS)
    assert first.__add__(1) is NotImplemented
    with pytest.raises(ValueError, match="must be about the same reference"):
        _ = first.statistics + run(make("full"), [ROWS[:100]]).running.stream.statistics
    while not fit.is_over:
        fit.update(fit.summarize(ROWS))
    with pytest.raises(RuntimeError, match="is over"):
        fit.update(fit.summarize(ROWS))
    with pytest.raises(ValueError, match="row 1 holds nan"):
        fit.summarize(torch.tensor([[0.0] * D, [float("nan")] * D]))
    with pytest.raises(ValueError, match="distributed=False"):
        MapReduceFit(StudentTMixture(2, 2, distributed=True))
    with pytest.raises(ValueError, match="max_candidates=None"):
        MapReduceFit(StudentTMixture(4, 2, max_candidates=2))
    empty = Reservoir(*(torch.zeros(0, 2), *[torch.zeros(0)] * 3), 0, 5)
    with pytest.raises(ValueError, match="reservoirs must be alike"):
        _ = empty + fit.draw(ROWS)
