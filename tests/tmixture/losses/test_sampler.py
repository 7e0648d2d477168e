"""Which samples a `ClusterBalancedSampler` draws."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tmixture.losses import ClusterBalancedSampler

LABELS = np.repeat([0, 1, 2, 7], [800, 150, 40, 10])


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_clusters_are_drawn_in_proportion_to_a_power_of_their_size(exponent):
    drawn = LABELS[list(ClusterBalancedSampler(LABELS, exponent=exponent, num_samples=40_000))]
    sizes = np.array([800, 150, 40, 10.0]) ** (1 - exponent)
    share = np.array([(drawn == label).mean() for label in (0, 1, 2, 7)])
    np.testing.assert_allclose(share, sizes / sizes.sum(), atol=4 * 0.5 / np.sqrt(40_000))


def test_samples_of_a_cluster_take_turns():
    counts = np.bincount(list(ClusterBalancedSampler(LABELS, num_samples=5000)), minlength=len(LABELS))
    for label in (0, 1, 2, 7):
        of_cluster = counts[label == LABELS]
        assert of_cluster.max() - of_cluster.min() <= 1


def test_processes_draw_together_what_one_would():
    one = list(ClusterBalancedSampler(LABELS, num_samples=999, seed=3))
    parts = [ClusterBalancedSampler(LABELS, num_samples=999, seed=3, num_replicas=3, rank=rank) for rank in range(3)]
    assert [index for triple in zip(*parts) for index in triple] == one
    uneven = [ClusterBalancedSampler(LABELS, num_samples=1000, num_replicas=3, rank=rank) for rank in range(3)]
    assert [len(list(sampler)) for sampler in uneven] == [len(sampler) for sampler in uneven] == [334] * 3


def test_epochs_differ_and_can_be_drawn_again():
    sampler = ClusterBalancedSampler(LABELS)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    sampler.set_labels(LABELS[::-1].copy())
    assert list(sampler) != first


def test_it_drives_a_data_loader():
    data = TensorDataset(torch.from_numpy(LABELS))
    loader = DataLoader(data, batch_size=100, sampler=ClusterBalancedSampler(LABELS))
    seen = torch.cat([labels for (labels,) in loader])
    assert len(seen) == 1000
    assert (torch.bincount(seen)[[0, 1, 2, 7]] > 180).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": np.ones(3)}, "labels must be integers"),
        ({"labels": LABELS, "rank": 2, "num_replicas": 2}, "rank must lie in 0 … num_replicas − 1 = 1, got 2"),
        ({"labels": LABELS, "num_samples": 0}, "num_samples must be a positive integer, got 0"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusterBalancedSampler(**arguments)
