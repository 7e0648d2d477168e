"""Clusters that follow embeddings that move, a loss that begins softly, and collapses that are noticed."""

import warnings

import pytest
import torch

from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss
from tmixture.losses.health import complaint, effective_rank, mean_cosine, perplexity, readier

from .helpers import clustered, leaf

normalize = torch.nn.functional.normalize


def test_the_spread_of_known_embeddings():
    assert float(mean_cosine(torch.eye(5))) == pytest.approx(0, abs=1e-6)
    assert float(mean_cosine(torch.ones(5, 3))) == pytest.approx(1)
    assert float(mean_cosine(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))) == pytest.approx(-1)
    assert float(effective_rank(torch.eye(5))) == pytest.approx(5)
    assert float(effective_rank(torch.ones(5, 3))) == pytest.approx(1)
    assert float(effective_rank(torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)))) > 7.9
    assert float(perplexity(torch.tensor([0, 0, 1, 1, 4, 4]))) == pytest.approx(3)


def test_readiness_follows_stability():
    ready = torch.tensor(0.0)
    for _ in range(20):
        ready = readier(ready, churn=0.05)
    assert ready > 0.99
    for _ in range(20):
        ready = readier(ready, churn=0.9)
    assert ready < 0.01


def moving(step, n, seed):
    """A batch of embeddings that all lie in one cone at first, and spread as training goes on."""
    generator = torch.Generator().manual_seed(0)
    centres, cone = torch.randn(12, 16, generator=generator), torch.randn(16, generator=generator)
    generator = torch.Generator().manual_seed(seed)
    rows = centres[torch.randint(12, (n,), generator=generator)] + 0.4 * torch.randn(n, 16, generator=generator)
    return normalize(3 * cone + min(1.0, 0.02 + step / 60) * 3 * rows - min(1.0, step / 60) * 3 * cone, dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("n_components", [8, 20])
def test_clusters_live_while_embeddings_move(n_components):
    """As diverse as those of a fresh fit to the same rows, to 80 %."""
    loss = ClusterTripletLoss(n_components=n_components, embedding_size=16)
    for step in range(80):
        loss(moving(step, 128, seed=step + 1))
        if step % 20 == 19 and step > 20:
            rows = moving(step, 1000, seed=1000 + step)
            fresh = StudentTMixture(n_components, 16, generator=1).fit(rows)
            assert perplexity(loss.predict(rows)) > 0.8 * perplexity(fresh.predict(rows))
    assert loss.statistics["readiness"] > 0.9


def test_clusters_keep_their_numbers_while_embeddings_move():
    loss, rows = ClusterTripletLoss(n_components=12, embedding_size=16), moving(200, 500, seed=5)
    for step in range(200, 240):
        loss(moving(step, 128, seed=step))
    before = loss.predict(rows)
    for step in range(240, 300):
        loss(moving(step, 128, seed=step))
    assert (loss.predict(rows) == before).float().mean() > 0.8


def test_the_loss_begins_softly():
    loss, values = ClusterTripletLoss(n_components=4, embedding_size=6, refit=2), []
    for seed in range(30):
        x = clustered(32, seed=seed, spread=1.0)[0]
        values.append((float(loss(x)), loss.statistics["readiness"]))
    readiness = [ready for _, ready in values]
    assert readiness == sorted(readiness)
    assert readiness[1] == 0
    assert readiness[-1] > 0.95
    full = ClusterTripletLoss(loss.mixture, refit="external")
    assert float(loss.eval()(x)) == pytest.approx(readiness[-1] * float(full(x)), rel=1e-5)


def test_a_fitted_mixture_is_ready_at_once():
    mixture = StudentTMixture(4, 6, generator=0).fit(normalize(clustered(200)[0], dim=1))
    assert ClusterTripletLoss(mixture)(clustered(32, spread=2.0)[0]) > 0


def test_a_collapse_of_the_embeddings_is_noticed_once():
    layer, loss = torch.nn.Linear(6, 6), ClusterTripletLoss(n_components=4, embedding_size=6, refit=2)
    for seed in range(6):
        loss(layer(clustered(32, seed=seed)[0]))
    with torch.no_grad():
        layer.weight.mul_(1e-4)
        layer.bias.fill_(1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(20):
            loss(layer(clustered(32, seed=seed)[0]))
    (message,) = [str(w.message) for w in caught if "embeddings have collapsed" in str(w.message)]
    assert "needs another loss beside it" in message
    assert loss.statistics["mean_cosine"] > 0.999
    assert loss.statistics["effective_rank"] < 1.1


def test_a_collapse_of_the_clusters_is_noticed():
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert complaint(rows, torch.arange(400) % 20, 20, widest=8.0) is None
    assert "20 of them are as diverse as 1.0" in complaint(rows, torch.zeros(400, dtype=torch.long), 20, widest=8.0)


def test_healthy_training_gives_no_warning():
    loss = ClusterTripletLoss(n_components=4, embedding_size=6, refit=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20):
            loss(clustered(32, seed=seed, spread=1.0)[0])


def test_terms_at_the_margin_are_counted():
    loss = ClusterTripletLoss(StudentTMixture(4, 6, generator=0).fit(normalize(clustered(200)[0], dim=1)), miner=None)
    loss.eval()(leaf(clustered(32)[0]))
    assert loss.statistics["at_margin"] < 0.5
    point = normalize(torch.ones(32, 6) + 1e-4 * clustered(32)[0], dim=1)
    loss.mixture.fit(normalize(point, dim=1))
    loss(leaf(point))
    assert loss.statistics["at_margin"] > 0.9
