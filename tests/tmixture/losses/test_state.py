"""What trainers do to a module that holds a cluster loss: average it, save it in shards, broadcast it, replicate it."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss, ClusterWeights

from .helpers import clustered


class Encoder(torch.nn.Module):
    """An encoder with its loss, as trainers hold it."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(6, 6)
        self.loss = ClusterTripletLoss(n_components=4, embedding_size=6, **{"refit": "streaming", **settings})

    def forward(self, x):
        return self.loss(self.layer(x))


SETTINGS = [{}, {"memory_size": 40}, {"memory_size": 40, "refit": 4, "weights": "outlier"}]
every_setting = pytest.mark.parametrize("settings", SETTINGS)
# Before anything, while the mixture warms up, and after.
every_time = pytest.mark.parametrize("calls", [0, 1, 5])


def trained(calls, **settings):
    model = Encoder(**settings)
    for seed in range(calls):
        model(clustered(16, seed=seed, spread=1.5)[0])
    return model


@every_setting
def test_the_state_has_the_same_shapes_at_any_time(settings):
    shapes = [{name: (x.shape, x.dtype) for name, x in trained(n, **settings).state_dict().items()} for n in (0, 1, 5)]
    assert shapes[0] == shapes[1] == shapes[2]
    # pytorch-metric-learning's record keeper makes a scalar of whatever has no more than one element.
    assert all(shape.numel() > 0 for shape, _ in shapes[0].values())


@every_setting
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averaged_models_follow_from_the_first_step(settings, average):
    """Of which the averages of the buffers are as wanted: the copy can be asked at any time."""
    model = Encoder(**settings)
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for seed in range(8):
        x = clustered(16, seed=seed, spread=1.5)[0]
        model(x)
        averaged.update_parameters(model)
        assert averaged.module.eval()(x).isfinite()
    assert averaged.module.loss.mixture.fitted
    assert averaged.module.loss.predict(x).shape == (16,)


@every_setting
def test_an_average_over_the_values_of_a_state_is_one_of_the_module(settings):
    """As older trainers write it by hand, of all that is floating."""
    model = Encoder(**settings)
    follower = copy.deepcopy(model).eval()
    for seed in range(8):
        x = clustered(16, seed=seed, spread=1.5)[0]
        model(x)
        with torch.no_grad():
            for mean, value in zip(follower.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.dtype.is_floating_point:
                    mean.mul_(0.5).add_(value, alpha=0.5)
                else:
                    mean.copy_(value)
    assert follower.loss.mixture.fitted
    mixture = StudentTMixture(4, 6)
    mixture.load_state_dict(follower.loss.mixture.state_dict())
    torch.testing.assert_close(follower.loss.predict(x), mixture.predict(torch.nn.functional.normalize(x, dim=1)))


@every_setting
@every_time
def test_a_sharded_checkpoint_restores_a_fresh_module(settings, calls, tmp_path):
    model = trained(calls, **settings)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path)
    fresh = Encoder(**settings)
    state = {"model": get_model_state_dict(fresh)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(fresh, state["model"])
    torch.testing.assert_close(dict(fresh.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    x = clustered(16, seed=9)[0]
    torch.testing.assert_close(fresh(x), model(x), rtol=0, atol=0)


@every_time
def test_a_state_that_is_filled_in_place_is_noticed(calls):
    """As a broadcast from the process that has loaded a checkpoint fills it."""
    model, fresh = trained(calls, memory_size=40), Encoder(memory_size=40)
    with torch.no_grad():
        for mine, theirs in zip([*fresh.parameters(), *fresh.buffers()], [*model.parameters(), *model.buffers()]):
            mine.copy_(theirs)
    x = clustered(16, seed=9)[0]
    torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=0, atol=0)
    torch.testing.assert_close(fresh.train()(x), model.train()(x), rtol=0, atol=0)


def test_weights_of_the_encoder_alone_leave_the_rest_as_it_is():
    model = trained(5, memory_size=40)
    before = copy.deepcopy(model.loss.state_dict())
    model.load_state_dict({"layer.weight": torch.ones(6, 6)}, strict=False)
    torch.testing.assert_close(dict(model.loss.state_dict()), dict(before), rtol=0, atol=0)


def test_replicas_of_data_parallel_are_refused_in_training():
    model = trained(5)
    replica = model.loss._replicate_for_data_parallel()
    x = clustered(16, seed=9)[0]
    with pytest.raises(RuntimeError, match=r"nn\.DataParallel, whose updates would be lost: call the loss outside"):
        replica(x)
    torch.testing.assert_close(replica.eval()(x), model.loss.eval()(x))


def test_weights_and_their_calibration_are_in_the_state():
    mixture = StudentTMixture(4, 6, generator=0).fit(clustered(200)[0])
    loss, fresh = (
        ClusterTripletLoss(m, weights=ClusterWeights(m, mass="inverse", recent=30), refit="external")
        for m in (mixture, StudentTMixture(4, 6))
    )
    for seed in range(3):
        loss(clustered(16, seed=seed)[0])
    assert (loss.weights.calibration > 0).all()
    fresh.load_state_dict(loss.state_dict())
    x = clustered(16, seed=9)[0]
    torch.testing.assert_close(fresh.eval()(x), loss.eval()(x), rtol=0, atol=0)
