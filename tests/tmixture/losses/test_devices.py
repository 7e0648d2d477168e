"""On every device there is: the same loss, gradient and mixture as on a CPU."""

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from tmixture.losses import (
    ClusterBalancedSampler,
    ClusterLoss,
    ClusterTripletLoss,
    ClusterWeights,
    CoMembershipLoss,
    LabelWeights,
    SemiHardMiner,
)

from ..helpers import CallCounter, computes
from .helpers import clustered, fitted, leaf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_triplets_are_mined(device, dtype):
    x, labels = clustered(300, spread=2.0, dtype=dtype)
    expected = torch.stack(SemiHardMiner()(x, labels), 1)
    mined = torch.stack(SemiHardMiner()(x.to(device), labels.to(device)), 1)
    assert mined.device.type == device.type
    ours, theirs = ({tuple(t) for t in triplets.tolist()} for triplets in (mined, expected))
    assert len(ours ^ theirs) <= 0.001 * len(theirs)  # ties by rounding


@pytest.mark.parametrize("miner", ["semihard", "hard", None])
@pytest.mark.parametrize("weights", [None, "outlier", "inverse"])
def test_loss_and_gradient_are_those_of_a_cpu(device, miner, weights):
    x = clustered(40, spread=2.0)[0]
    reference, there = leaf(x), leaf(x.to(device))
    settings = {"miner": miner, "weights": weights, "refit": "external"}
    expected = ClusterTripletLoss(fitted(), **settings)(reference)
    loss = ClusterTripletLoss(fitted().to(device), **settings)(there)
    expected.backward()
    loss.backward()
    assert loss.device.type == device.type
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.grad.cpu(), reference.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("refit", ["streaming", 3])
@pytest.mark.parametrize("make", [ClusterTripletLoss, lambda **settings: ClusterLoss(loss=SupConLoss(), **settings)])
def test_training_follows_the_embeddings(device, refit, make):
    loss_fn = make(n_components=4, embedding_size=6, memory_size=64, refit=refit)  # goes to the embeddings' device
    for step in range(8):
        x = leaf(clustered(32, seed=step)[0].to(device))
        loss = loss_fn(x)
        loss.backward()
        assert loss.device.type == x.grad.device.type == device.type
        assert x.grad.isfinite().all()
    assert loss_fn.mixture.means.device.type == device.type
    assert loss > 0
    assert loss_fn.statistics["active_clusters"] > 1
    copy = make(n_components=4, embedding_size=6, memory_size=64, refit=refit).to(device)
    copy.load_state_dict(loss_fn.state_dict())
    x = clustered(32, seed=99)[0].to(device)
    torch.testing.assert_close(copy.eval()(x), loss_fn.eval()(x))


def test_weights_and_the_sampler(device):
    x, labels = clustered(80)
    weights = ClusterWeights(fitted().to(device), mass="inverse")(torch.nn.functional.normalize(x).to(device))
    expected = ClusterWeights(fitted(), mass="inverse")(torch.nn.functional.normalize(x))
    torch.testing.assert_close(weights.cpu(), expected, rtol=1e-4, atol=1e-5)
    given = LabelWeights(labels)(labels.to(device))
    assert given.device.type == device.type
    assert len(list(ClusterBalancedSampler(labels.to(device)))) == len(labels)


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select", "bincount"}


def waits(function, args):
    """Whether the host waits for the result on a GPU; the operators of a CPU are the same."""
    name = function._schema.name.removeprefix("aten::")
    by_mask = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
    return name in WAITS or by_mask


def calls_without_a_refit(make, counts):
    """How many calls count of a step, forward and backward, between two refits."""
    loss = make(n_components=4, embedding_size=6)
    for step in range(12):
        loss(leaf(clustered(32, seed=step)[0]))
    with CallCounter(counts) as counter:
        loss(leaf(clustered(32, seed=99)[0])).backward()
    return counter.n_calls


def co_membership(**settings):
    return ClusterLoss(loss=CoMembershipLoss(), **settings)


@pytest.mark.parametrize(("make", "most"), [(ClusterTripletLoss, 6), (co_membership, 3)])
def test_a_step_without_a_refit_waits_so_often_for_a_gpu(make, most):
    """Whether rows are finite, and whether they came before; miners and reducers do not know how much there is."""
    assert calls_without_a_refit(make, waits) <= most


@pytest.mark.parametrize(("make", "most"), [(ClusterTripletLoss, 200), (co_membership, 190)])
def test_a_step_without_a_refit_takes_so_many_calls(make, most):
    assert calls_without_a_refit(make, computes) <= most
