"""`ClusterLoss` is the wrapped loss on the mixture's labels, with everything that pytorch-metric-learning has."""

import copy

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils import distributed

from tmixture.losses import ClusterLoss, ClusterTripletLoss

from .helpers import clustered, fitted, leaf

LOSSES = [
    losses.AngularLoss(),
    losses.CircleLoss(),
    losses.ContrastiveLoss(),
    losses.DynamicSoftMarginLoss(),
    losses.FastAPLoss(),
    losses.GeneralizedLiftedStructureLoss(),
    losses.IntraPairVarianceLoss(),
    losses.LiftedStructureLoss(),
    losses.MarginLoss(),
    losses.MultiSimilarityLoss(),
    losses.NCALoss(),
    losses.NTXentLoss(),
    losses.PNPLoss(),
    losses.ProxyAnchorLoss(num_classes=4, embedding_size=6),
    losses.RankedListLoss(margin=0.4, Tn=1),
    losses.SignalToNoiseRatioContrastiveLoss(),
    losses.SupConLoss(),
    losses.TripletMarginLoss(),
    losses.TupletMarginLoss(),
]
MINERS = [
    miners.AngularMiner(),
    miners.BatchEasyHardMiner(),
    miners.BatchHardMiner(),
    miners.DistanceWeightedMiner(),
    miners.HDCMiner(),
    miners.MultiSimilarityMiner(),
    miners.PairMarginMiner(),
    miners.TripletMarginMiner(type_of_triplets="hard"),
    miners.UniformHistogramMiner(),
]
DISTANCES = [
    distances.CosineSimilarity(),
    distances.DotProductSimilarity(normalize_embeddings=False),
    distances.LpDistance(p=1),
    distances.LpDistance(normalize_embeddings=False, power=2),
    distances.SNRDistance(),
]
REDUCERS = [
    reducers.AvgNonZeroReducer(),
    reducers.ClassWeightedReducer(torch.tensor([1.0, 2.0, 3.0, 4.0])),
    reducers.MeanReducer(),
    reducers.PerAnchorReducer(),
    reducers.SumReducer(),
    reducers.ThresholdReducer(low=0.1),
]
REGULARIZERS = [
    regularizers.CenterInvariantRegularizer(),
    regularizers.LpRegularizer(),
    regularizers.ZeroMeanRegularizer(),
]


def named(things):
    return pytest.mark.parametrize("thing", things, ids=lambda thing: type(thing).__name__)


def assert_same(loss, reference, x):
    """Equal values and gradients, of a loss on clusters and of the loss that it wraps on the clusters' labels."""
    one, other = leaf(x), leaf(x)
    torch.manual_seed(0)
    value = loss(one)
    labels = loss.mixture.predict(torch.nn.functional.normalize(x, dim=1))
    torch.manual_seed(0)
    expected = reference(other, labels)
    torch.testing.assert_close(value, expected)
    if expected.requires_grad and expected != 0:
        value.backward()
        expected.backward()
        torch.testing.assert_close(one.grad, other.grad)


@pytest.fixture
def x():
    return clustered(32, spread=2.0)[0]


@named(LOSSES)
def test_every_loss(thing, x):
    assert_same(ClusterLoss(fitted(), copy.deepcopy(thing), refit="external"), copy.deepcopy(thing), x)


@named(MINERS)
def test_every_miner(thing, x):
    loss = losses.TripletMarginLoss(margin=0.2)
    wrapped = ClusterLoss(fitted(), loss, copy.deepcopy(thing), refit="external")
    assert_same(wrapped, lambda e, labels: loss(e, labels, thing(e, labels)), x)


@named(DISTANCES)
def test_every_distance(thing, x):
    loss = losses.ContrastiveLoss(distance=thing)
    assert_same(ClusterLoss(fitted(), loss, refit="external"), loss, x)
    assert ClusterLoss(fitted(), loss).distance is thing


@named(REDUCERS)
def test_every_reducer(thing, x):
    loss = losses.ContrastiveLoss(reducer=thing)
    assert_same(ClusterLoss(fitted(), loss, refit="external"), loss, x)


@named(REGULARIZERS)
def test_every_regularizer(thing, x):
    settings = {"embedding_regularizer": thing, "embedding_reg_weight": 0.3}
    loss = losses.TripletMarginLoss(margin=0.3, **settings)
    assert_same(ClusterTripletLoss(fitted(), miner=None, refit="external", **settings), loss, x)
    without = ClusterTripletLoss(fitted(), miner=None, refit="external")
    assert loss(x, without.predict(x)) > without(x)


def test_given_labels_and_tuples_are_used_as_the_wrapped_loss_uses_them(x):
    labels = torch.randint(3, (len(x),), generator=torch.Generator().manual_seed(0))
    ref, ref_labels = clustered(20, seed=7)[0], torch.arange(20) % 3
    pairs = miners.PairMarginMiner()(x, labels)
    loss = losses.ContrastiveLoss()
    wrapped = ClusterLoss(None, loss, n_components=4, embedding_size=6, refit="streaming")
    before = copy.deepcopy(wrapped.state_dict())
    for arguments in [
        (labels,),
        (labels, pairs),
        (None, pairs),
        (labels, None, ref, ref_labels),
        (labels, miners.PairMarginMiner()(x, labels, ref, ref_labels), ref, ref_labels),
    ]:
        torch.testing.assert_close(wrapped(x, *arguments), loss(x, *arguments), rtol=0, atol=0)
    torch.testing.assert_close(wrapped.state_dict(), before)
    miner = miners.BatchHardMiner()
    mined = ClusterLoss(None, loss, miner, n_components=4, embedding_size=6, refit="streaming")(x, labels)
    torch.testing.assert_close(mined, loss(x, labels, miner(x, labels)))


def test_it_is_one_of_multiple_losses(x):
    mixture = fitted()
    triplet, supcon = losses.TripletMarginLoss(margin=0.3), losses.SupConLoss()
    both = losses.MultipleLosses(
        [ClusterLoss(mixture, triplet, refit="external"), ClusterLoss(mixture, supcon, refit="external")],
        weights=[1.0, 0.5],
    )
    labels = mixture.predict(torch.nn.functional.normalize(x, dim=1))
    torch.testing.assert_close(both(x, None), triplet(x, labels) + 0.5 * supcon(x, labels))
    torch.testing.assert_close(both(x, labels), triplet(x, labels) + 0.5 * supcon(x, labels))
    assert any("means" in name for name in both.state_dict())


def test_a_distributed_wrapper_outside_of_a_process_group_changes_nothing(x):
    loss = ClusterTripletLoss(fitted(), refit="external")
    with pytest.warns(UserWarning, match="non-distributed"):
        torch.testing.assert_close(distributed.DistributedLossWrapper(loss)(x), loss(x))


def test_the_documented_training_loop_with_cluster_labels_in_place_of_labels():
    """The example of pytorch-metric-learning's front page: customised loss and miner, optimizer, stepping."""
    distance = distances.CosineSimilarity()
    reducer = reducers.ThresholdReducer(low=0)
    loss_func = ClusterLoss(
        loss=losses.TripletMarginLoss(margin=0.2, distance=distance, reducer=reducer),
        miner=miners.TripletMarginMiner(margin=0.2, distance=distance, type_of_triplets="semihard"),
        n_components=4,
        embedding_size=6,
    )
    model = torch.nn.Linear(6, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for step in range(20):
        optimizer.zero_grad()
        loss = loss_func(model(clustered(64, seed=step, spread=1.5)[0]))
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert max(values) > 0
    assert loss_func.statistics["tuples"] == loss_func.miner.num_triplets


def test_losses_without_rows_of_their_own_are_refused():
    memory = losses.CrossBatchMemory(losses.NTXentLoss(), embedding_size=6)
    with pytest.raises(ValueError, match="got CrossBatchMemory; instead of a CrossBatchMemory, give memory_size"):
        ClusterLoss(fitted(), memory)


def test_what_is_no_miner_and_what_is_no_tensor_is_named(x):
    with pytest.raises(ValueError, match=r"miner must be a miner .* got 'semihard'"):
        ClusterLoss(loss=losses.TripletMarginLoss(), miner="semihard", n_components=4, embedding_size=8)
    with pytest.raises(ValueError, match=r"embeddings must be a tensor .* got ndarray"):
        ClusterLoss(loss=losses.TripletMarginLoss(), n_components=4, embedding_size=8)(x.detach().numpy())
