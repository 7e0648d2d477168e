"""The cluster stage of an arm follows features that move."""

import pytest
import torch
from torch.nn.functional import normalize

from cxr.training.arms import ARMS
from cxr.training.cluster_stage import RECENT_ROWS, WEIGHT_LIMIT, ClusterStage


class MovingEmbeddings:
    """Image and text embeddings of eight groups whose centres move on with every batch, as those of a network do."""

    def __init__(self, d=16):
        self.draw = torch.Generator().manual_seed(0)
        self.centres = torch.randn(8, d, generator=self.draw)
        self.motion = 0.05 * torch.randn(8, d, generator=self.draw)

    def batch(self, size):
        self.centres = self.centres + self.motion
        group = torch.randint(8, (size,), generator=self.draw)
        spread = 0.3 * torch.randn(2, size, self.centres.shape[1], generator=self.draw)
        return normalize(self.centres[group] + spread, dim=2).unbind()


def stage_of(arm):
    return ClusterStage(ARMS[arm], 16, n_components=8, dof=4.0, seed=0)


UNKNOWN = torch.full((32,), -1)


def test_weights_tell_samples_apart_however_far_the_features_have_moved():
    embeddings, stage = MovingEmbeddings(), stage_of("cxr-cml")
    stage.fit(*embeddings.batch(500))
    weights = [stage(*embeddings.batch(32), UNKNOWN)[0] for _ in range(100)][60:]
    weights = torch.cat(weights)
    assert weights.mean() == pytest.approx(1, abs=0.15)
    assert weights.log().std() > 0.2
    assert (weights > 0.95 * weights.max()).float().mean() < 0.2  # few have reached the limit
    assert weights.max() / weights.median() < 1.5 * WEIGHT_LIMIT


def test_weights_have_a_mean_of_one_over_the_latest_rows():
    embeddings, stage = MovingEmbeddings(), stage_of("weights-only")
    stage.fit(*embeddings.batch(500))
    for _ in range(50):
        stage(*embeddings.batch(32), UNKNOWN)
    recent = stage.weights.recent
    assert len(recent) == RECENT_ROWS
    assert stage.weights.eval()(recent.embeddings).mean() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("arm", ["as-released", "triplets-only", "shuffled-weights", "shuffled-labels"])
def test_parts_that_an_arm_leaves_out_stay_out(arm):
    embeddings, stage = MovingEmbeddings(), stage_of(arm)
    stage.fit(*embeddings.batch(500))
    # Random directions: of distinct clusters no triplet would violate the margin.
    images, texts = (normalize(torch.randn(32, 16), dim=1).requires_grad_() for _ in range(2))
    weights, metric = stage(images, texts, UNKNOWN)
    assert (weights.unique().numel() > 1) == ARMS[arm].cluster_weights
    metric.backward()
    assert bool(images.grad.any()) == (not ARMS[arm].released)
    assert bool(stage.mixture.fitted) == (not ARMS[arm].released)


def test_clusters_live_however_far_the_features_have_moved():
    embeddings, stage = MovingEmbeddings(), stage_of("cxr-cml")
    stage.fit(*embeddings.batch(500))
    for _ in range(300):
        stage(*embeddings.batch(32), UNKNOWN)
    assert stage.statistics["cluster_perplexity"] > 5


@pytest.mark.parametrize("arm", ["few-5-clusters", "few-5-centroid", "few-5-true"])
def test_images_of_unknown_class_are_pulled_to_those_of_their_own(arm):
    """Of two groups, of which the first images are labelled."""
    generator = torch.Generator().manual_seed(0)
    centres, group = torch.randn(2, 16, generator=generator), torch.arange(32) % 2
    stage = ARMS[arm].stage(ARMS[arm], 16, n_components=2, dof=4.0, seed=0)
    known = torch.where(torch.arange(32) < (32 if "true" in arm else 8), group, -1)
    for _ in range(40):
        images = (centres[group] + torch.randn(32, 16, generator=generator)).requires_grad_()
        weights, loss = stage(images, torch.zeros(32, 16), known)
    assert (weights == 1).all()
    loss.backward()
    moved = normalize((images - images.grad / images.grad.norm()).detach(), dim=1)
    start = normalize(images.detach(), dim=1)

    def contrast(x):
        same = group[:, None] == group
        return (x @ x.T)[same].mean() - (x @ x.T)[~same].mean()

    assert contrast(moved) > contrast(start) + 1e-3


def test_a_control_with_shuffled_clusters_pulls_nowhere():
    stage = ARMS["few-5-shuffled"].stage(ARMS["few-5-shuffled"], 16, n_components=2, dof=4.0, seed=0)
    assert stage.metric.shuffle
