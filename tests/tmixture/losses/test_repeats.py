"""A batch that comes again within a training step is learned once, and an error leaves everything as it was."""

import copy

import pytest
import torch
from pytorch_metric_learning import losses, miners
from torch.utils.checkpoint import checkpoint

from tmixture.losses import ClusterLoss, ClusterTripletLoss, ClusterWeights

from .helpers import clustered, fitted

SETTINGS = [{}, {"memory_size": 64}, {"memory_size": 64, "refit": 4, "weights": "outlier"}]
every_setting = pytest.mark.parametrize("settings", SETTINGS)


def started(**settings):
    loss_fn = ClusterTripletLoss(n_components=4, embedding_size=6, **{"refit": "streaming", **settings})
    for seed in range(6):
        loss_fn(clustered(16, seed=seed, spread=1.5)[0])
    return loss_fn


def state(module):
    return {name: x.clone() for name, x in module.state_dict().items()}


@every_setting
def test_gradient_accumulation_over_the_parts_of_a_batch_learns_it_once(settings):
    """As open_clip does it: for each of four parts the whole batch, of which the part alone was computed anew."""
    once, four_times = started(**settings), started(**settings)
    x = clustered(64, seed=9, spread=1.5)[0]
    expected = once(x)
    for part in range(4):
        again = x.clone().requires_grad_()
        given = torch.cat([again[rows] if i == part else x[rows] for i, rows in enumerate(torch.arange(64).split(16))])
        torch.testing.assert_close(four_times(given), expected)
    torch.testing.assert_close(state(four_times), state(once), rtol=0, atol=0)


@every_setting
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_around_the_loss(settings, reentrant):
    plain, checkpointed = started(**settings), started(**settings)
    layer = torch.nn.Linear(6, 6)
    gradients = []
    for loss_fn in (plain, checkpointed):
        layer.zero_grad()
        for seed in (9, 10):
            x = clustered(64, seed=seed, spread=1.5)[0].requires_grad_()
            if loss_fn is plain:
                loss = loss_fn(layer(x))
            else:
                loss = checkpoint(lambda rows: checkpointed(layer(rows)), x, use_reentrant=reentrant)
            loss.backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(state(plain), state(checkpointed), rtol=0, atol=0)


def test_checkpointing_in_the_warm_up():
    loss_fn = ClusterTripletLoss(n_components=4, embedding_size=6, refit="streaming")
    x = clustered(30, spread=1.5)[0].requires_grad_()
    checkpoint(loss_fn, x, use_reentrant=False).backward()
    assert int(loss_fn.mixture.running.n_waiting) == 30


def test_the_same_rows_end_the_warm_up():
    """As whoever tries the loss on one batch expects."""
    loss_fn, x = ClusterTripletLoss(n_components=4, embedding_size=6, refit="streaming"), clustered(16, spread=1.5)[0]
    assert [float(loss_fn(x)) > 0 for _ in range(4)] == [False, False, True, True]


def test_rows_can_be_labelled_without_being_learned():
    loss_fn = started(memory_size=64)
    before = state(loss_fn)
    assert loss_fn(clustered(16, seed=9)[0], learn=False) > 0
    torch.testing.assert_close(state(loss_fn), before, rtol=0, atol=0)


def test_recent_rows_of_weights_are_learned_once_too():
    mixture = fitted()
    loss_fn = ClusterTripletLoss(mixture, weights=ClusterWeights(mixture, recent=64), refit="external")
    x = clustered(16, seed=9)[0]
    for _ in range(3):
        loss_fn(x)
    assert len(loss_fn.weights.recent) == 16


# -------------------------------------------------------------------- errors


class FailingLoss(losses.TripletMarginLoss):
    """Fails when told to."""

    fails = False

    def compute_loss(self, *args):
        if self.fails:
            raise RuntimeError("out of memory")
        return super().compute_loss(*args)


@pytest.mark.parametrize("settings", [{}, {"memory_size": 64}, {"memory_size": 64, "refit": 1}])
def test_an_error_of_the_wrapped_loss_leaves_everything_as_it_was(settings):
    wrapped = FailingLoss()
    loss_fn = ClusterLoss(loss=wrapped, n_components=4, embedding_size=6, **{"refit": "streaming", **settings})
    for seed in range(4):
        loss_fn(clustered(16, seed=seed, spread=1.5)[0])
    before, statistics, x = state(loss_fn), loss_fn.statistics, clustered(16, seed=9)[0]
    labels, history = loss_fn.predict(x), loss_fn.mixture.history_
    wrapped.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        loss_fn(x)
    torch.testing.assert_close(state(loss_fn), before, rtol=0, atol=0)
    assert loss_fn.statistics == statistics
    assert loss_fn.mixture.history_ is history
    assert torch.equal(loss_fn.predict(x), labels)
    wrapped.fails = False
    undisturbed = copy.deepcopy(loss_fn)
    torch.testing.assert_close(loss_fn(x), undisturbed(x))


OF_CLASSES = [
    *(losses.ArcFaceLoss, losses.CosFaceLoss, losses.LargeMarginSoftmaxLoss, losses.NormalizedSoftmaxLoss),
    *(losses.ProxyAnchorLoss, losses.ProxyNCALoss, losses.SoftTripleLoss, losses.SphereFaceLoss),
    losses.SubCenterArcFaceLoss,
]
ALL_LOSSES = [
    *(losses.AngularLoss(), losses.CircleLoss(), losses.ContrastiveLoss(), losses.DynamicSoftMarginLoss()),
    *(losses.FastAPLoss(), losses.GeneralizedLiftedStructureLoss(), losses.HistogramLoss(n_bins=10)),
    *(losses.InstanceLoss(), losses.IntraPairVarianceLoss(), losses.LiftedStructureLoss(), losses.MarginLoss()),
    *(losses.MultiSimilarityLoss(), losses.NCALoss(), losses.NTXentLoss(), losses.PNPLoss()),
    *(losses.RankedListLoss(margin=0.4, Tn=1), losses.SignalToNoiseRatioContrastiveLoss(), losses.SupConLoss()),
    *(losses.SmoothAPLoss(), losses.ThresholdConsistentMarginLoss(), losses.TripletMarginLoss()),
    *(losses.TupletMarginLoss(), losses.VICRegLoss(), losses.ManifoldLoss(l=6, K=4)),
    *(kind(num_classes=4, embedding_size=6) for kind in OF_CLASSES),
    losses.P2SGradLoss(descriptors_dim=6, num_classes=4),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"memory_size": 64}, {"weights": "outlier"}], ids=str)
@pytest.mark.parametrize("loss", ALL_LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_loss_works_or_is_refused_before_training(loss, settings):
    try:
        loss_fn = ClusterLoss(
            loss=copy.deepcopy(loss), n_components=4, embedding_size=6, **{"refit": "streaming", **settings}
        )
    except ValueError:
        return
    for seed in range(4):
        assert loss_fn(clustered(16, seed=seed, spread=1.5)[0].requires_grad_()).isfinite()


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (losses.ArcFaceLoss(4, 6), {"memory_size": 64}, "ArcFaceLoss cannot be used with memory_size, "),
        (losses.FastAPLoss(), {"memory_size": 64}, "FastAPLoss cannot be used with memory_size"),
        (losses.ArcFaceLoss(3, 6), {}, "ArcFaceLoss cannot be used with n_components=4: index 3 is out of bounds"),
        (losses.PNPLoss(), {"miner": miners.BatchHardMiner()}, "PNPLoss cannot be used with BatchHardMiner"),
        (losses.P2SGradLoss(6, 4), {"weights": "outlier"}, r"P2SGradLoss cannot be used with weights, .* one number"),
    ],
)
def test_what_cannot_be_is_said_at_construction(loss, settings, message):
    with pytest.raises(ValueError, match=message):
        ClusterLoss(loss=loss, n_components=4, embedding_size=6, **{"refit": "streaming", **settings})


def test_a_loss_for_embeddings_of_another_width_is_not_tried():
    loss_fn = ClusterLoss(loss=losses.ArcFaceLoss(4, 3), n_components=4, embedding_size=6, refit="streaming")
    for seed in range(4):
        x = clustered(16, seed=seed, spread=1.5)[0]
        assert loss_fn(x[:, :3], cluster_embeddings=x).isfinite()


# -------------------------------------------------------------------- short rows


@pytest.mark.parametrize("size", [0.0, 1e-36, 1e-30, 1e-13, 1e-7])
@pytest.mark.parametrize("given", [False, True])
def test_no_row_has_a_gradient_that_a_step_turns_into_infinity(size, given):
    """However short it is; one that has a direction is taken for what it is clustered as."""
    loss_fn = ClusterTripletLoss(fitted(), refit="external", miner=None)
    x = clustered(16, spread=1.5)[0]
    expected = loss_fn.predict(x)
    x[3] *= size
    if size:
        assert loss_fn.predict(x)[3] == expected[3]
    x.requires_grad_()
    loss = loss_fn(x, expected if given else None)
    loss.backward()
    assert x.grad.isfinite().all()
    assert x.grad.norm(dim=1).max() < 1e5
    if size == 0:
        assert (x.grad[3] == 0).all()
    else:
        whole = clustered(16, spread=1.5)[0]
        torch.testing.assert_close(loss, loss_fn(whole, expected if given else None), rtol=1e-4, atol=1e-5)


def test_a_batch_of_zeros_has_a_gradient_of_zeros():
    x = torch.zeros(8, 6, requires_grad=True)
    ClusterTripletLoss(fitted(), refit="external")(x, torch.arange(8) % 2).backward()
    assert (x.grad == 0).all()


# -------------------------------------------------------------------- compilation


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"memory_size": 40}])
def test_a_compiled_model_with_the_loss_in_it(settings):
    """One break in the graph, at the loss, whatever the batch."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(6, 6)
            self.loss = ClusterTripletLoss(n_components=4, embedding_size=6, **{"refit": "streaming", **settings})

        def forward(self, x):
            return self.loss(self.layer(x)) + 1

    model, reference = Model(), Model()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for seed, n in enumerate((16, 24, 24, 7, 16)):
        x = clustered(n, seed=seed, spread=1.5)[0]
        torch.testing.assert_close(compiled(x), reference(x))
    torch.testing.assert_close(state(model), state(reference))
    explained = torch._dynamo.explain(Model())(x)
    assert explained.graph_break_count == 1
