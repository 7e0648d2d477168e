"""`ClusterTripletLoss` against loops over triplets."""

import itertools
import time

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from pytorch_metric_learning.reducers import SumReducer

from tmixture.losses import ClusterTripletLoss, SemiHardMiner
from tmixture.losses.distances import EuclideanDistance

from .helpers import clustered, fitted, leaf

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-4, torch.float64: 1e-9}


def triplets(labels):
    """All (a, p, n)."""
    for a, p, n in itertools.product(range(len(labels)), repeat=3):
        if a != p and labels[a] == labels[p] != labels[n]:
            yield a, p, n


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equation_3_is_the_sum_over_all_triplets(dtype):
    x = leaf(clustered(18)[0].to(dtype))
    mixture = fitted().double()
    loss_fn = ClusterTripletLoss(mixture, margin=0.3, miner=None, reducer=SumReducer(), refit="external")
    loss = loss_fn(x)
    loss.backward()

    v = leaf(x.double())
    u = unit(v)
    labels = mixture.predict(u.detach())
    terms = [(u[a] - u[p]).norm() - (u[a] - u[n]).norm() + 0.3 for a, p, n in triplets(labels)]
    expected = sum(term.clamp(min=0) for term in terms)
    expected.backward()
    tolerance = TOLERANCE[dtype]
    assert len(labels.unique()) > 2
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(x.grad.double(), v.grad, rtol=tolerance, atol=tolerance * float(v.grad.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "distance", [LpDistance(), LpDistance(normalize_embeddings=False, power=2), CosineSimilarity()]
)
def test_semihard_triplets_have_the_nearest_negative_beyond_the_positive(dtype, distance):
    x, labels = clustered(30, dtype=dtype, spread=2.0)
    mined = {tuple(t) for t in torch.stack(SemiHardMiner(0.5, distance)(x, labels), 1).tolist()}
    d = -distance(x, x) if distance.is_inverted else distance(x, x)
    best = {}
    for a, p, n in triplets(labels):
        if d[a, p] < d[a, n] < d[a, p] + 0.5 and ((a, p) not in best or d[a, n] < d[a, best[a, p]]):
            best[a, p] = n
    assert len(best) > 20
    assert mined == {(a, p, n) for (a, p), n in best.items()}
    every = TripletMarginMiner(margin=0.5, type_of_triplets="semihard", distance=distance)(x, labels)
    assert mined <= {tuple(t) for t in torch.stack(every, 1).tolist()}


def test_blocks_of_anchors_give_the_same_triplets(monkeypatch):
    x, labels = clustered(50, spread=2.0)
    whole = torch.stack(SemiHardMiner()(x, labels))
    monkeypatch.setattr("tmixture.losses.miners.BLOCK_ELEMENTS", 120)
    torch.testing.assert_close(torch.stack(SemiHardMiner()(x, labels)), whole)


def test_threads_that_sort_give_the_same_triplets(monkeypatch):
    x, labels = clustered(50, spread=2.0)
    whole = torch.stack(SemiHardMiner()(x, labels))
    monkeypatch.setattr("tmixture.losses.miners.ELEMENTS_PER_THREAD", 500)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    torch.testing.assert_close(torch.stack(SemiHardMiner()(x, labels)), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_mined(dtype):
    x, labels = clustered(30, spread=2.0)
    x = x.to(dtype)
    anchor, positive, negative = SemiHardMiner(0.5, CosineSimilarity())(x, labels)
    assert len(anchor) > 20
    similarity = CosineSimilarity()(x, x)
    assert (similarity[anchor, positive] > similarity[anchor, negative]).all()


@pytest.mark.parametrize(
    ("miner", "reference"), [("semihard", SemiHardMiner(0.3)), ("hard", BatchHardMiner()), (None, None)]
)
def test_the_default_is_the_triplet_loss_on_mined_triplets_of_clusters(miner, reference):
    x = clustered(40, spread=2.0)[0]
    mixture = fitted()
    loss = ClusterTripletLoss(mixture, miner=miner, refit="external")(x)
    labels = mixture.predict(unit(x))
    tuples = None if reference is None else reference(x, labels)
    torch.testing.assert_close(loss, TripletMarginLoss(margin=0.3)(x, labels, tuples))
    assert loss > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_float32_answer(dtype):
    layer = torch.nn.Linear(6, 6)
    loss_fn = ClusterTripletLoss(fitted(), refit="external")
    x = clustered(40, spread=2.0)[0]
    with torch.autocast("cpu", dtype=dtype):
        embeddings = layer(x)
        loss = loss_fn(embeddings)
    assert embeddings.dtype == dtype
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_fn(embeddings.float()))
    loss.backward()
    assert layer.weight.grad.abs().sum() > 0


def test_distances_within_a_batch_are_those_of_pytorch_metric_learning():
    x = torch.randn(300, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = 3 * x[0]  # no distance, and no gradient through it
    pull = torch.randn(300, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for distance in (EuclideanDistance(), LpDistance(p=2)):
        embeddings = leaf(x)
        distances = distance(embeddings, embeddings)
        off_diagonal = distances.detach() > 1e-6
        (distances * pull * off_diagonal).sum().backward()
        results.append((distances.detach() * off_diagonal, embeddings.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_distances_are_taken_once_where_they_are_asked_for_twice():
    distance, x, other = EuclideanDistance(), leaf(torch.randn(5, 3)), torch.randn(4, 3)
    with distance.once():
        with torch.no_grad():
            mined = distance(x, x)
        assert not mined.requires_grad
        assert distance(x).requires_grad
        assert distance(x).data_ptr() == mined.data_ptr()
        assert distance(x, other).shape == (5, 4)
    assert distance(x).data_ptr() != mined.data_ptr()
    with torch.no_grad(), distance.once():
        assert not distance(x).requires_grad


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_fast_products_of_the_network_are_not_those_of_the_loss(precision, monkeypatch):
    seen, compute = [], LpDistance.compute_mat

    def spy(distance, query_emb, ref_emb):
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return compute(distance, query_emb, ref_emb)

    monkeypatch.setattr(LpDistance, "compute_mat", spy)
    torch.set_float32_matmul_precision(precision)
    loss_fn = ClusterTripletLoss(fitted(), refit="external")
    seen.clear()  # of its trial
    try:
        loss_fn(leaf(clustered(40, spread=2.0)[0])).backward()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) == 1  # the miner and the loss share their distances
    assert set(seen) == {"ieee"}


def test_a_batch_of_4096_is_mined_without_a_tensor_of_all_triplets():
    x, _ = clustered(4096, n_clusters=4, width=8)
    loss_fn = ClusterTripletLoss(n_components=40, embedding_size=8, refit="streaming")
    start = time.process_time()
    embeddings = leaf(x)
    loss_fn(embeddings).backward()
    assert time.process_time() - start < 30
    assert loss_fn.statistics["tuples"] < 4096**2
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().sum() > 0


def test_what_is_no_miner_is_refused():
    with pytest.raises(ValueError, match=r"miner must be 'semihard', 'hard', a miner .* got 'easy'"):
        ClusterTripletLoss(n_components=2, embedding_size=2, miner="easy")
