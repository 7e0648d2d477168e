"""The released code's loss: what it computes, and that it gives no gradient."""

import math

import pytest
import torch
from tests.tmixture.losses.helpers import clustered, leaf

from cxr.training.released import ReleasedClusterLoss, components_for_batch


@pytest.mark.parametrize(
    ("n", "K"), [(1, 1), (2, 2), (9, 2), (10, 3), (32, 5), (49, 5), (50, 12), (160, 40), (999, 40)]
)
def test_number_of_components_of_a_batch(n, K):
    assert components_for_batch(n) == K


def test_only_an_image_alone_in_its_cluster_is_a_positive_and_only_of_itself():
    x, labels = clustered(31, n_clusters=5, spread=0.02)
    images = torch.nn.functional.normalize(torch.cat([x[labels < 4], x[labels == 4][:1]]), dim=1)
    positives = ReleasedClusterLoss().positive_pairs(images)
    assert positives.nonzero().tolist() == [[len(images) - 1, len(images) - 1]]


def test_the_hinge_against_a_loop():
    x = clustered(12, spread=2.0)[0]
    texts = x + 0.1 * clustered(12, seed=1)[0]
    loss_fn = ReleasedClusterLoss()
    v, t = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (x, texts))
    pairs = loss_fn.positive_pairs(v)
    positive = negative = 0.0
    for i in range(12):
        for j in range(12):
            distance = float((v[i] - t[j]).norm()) * math.exp(0.07) / 144
            positive, negative = positive + distance * bool(pairs[i, j]), negative + distance * (not pairs[i, j])
    expected = max(0.0, positive - negative + 0.3 * (1 + math.exp(-positive)))
    assert float(loss_fn(x.double(), texts.double())) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("width", [6, 64])
@pytest.mark.parametrize("n", [16, 64])
def test_it_gives_no_gradient(n, width):
    images, texts = leaf(clustered(n, width=width)[0]), leaf(clustered(n, width=width, seed=1)[0])
    loss = ReleasedClusterLoss()(images, texts)
    loss.backward()
    assert loss == 0
    assert (images.grad == 0).all()
    assert (texts.grad == 0).all()


def test_below_the_threshold_of_the_mean_distance_it_is_not_zero():
    x = torch.nn.functional.normalize(clustered(16, spread=0.3)[0], dim=1)
    close = torch.nn.functional.normalize(x.mean(0) + 0.1 * x, dim=1)
    assert ReleasedClusterLoss()(close, close) > 0
