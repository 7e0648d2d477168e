"""Components merged into clusters, against the definition step by step."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.cluster import hierarchy

from tmixture import StudentTMixture, merge_components, plot


def entropy(shares):
    """Mean −Σ r·log r over rows, in plain Python."""
    return -sum(r * math.log(r) for row in shares for r in row if r > 0) / len(shares)


def merged_step_by_step(shares):
    """All partitions of one cluster fewer are tried in each step: [(partition, entropy)] from K clusters to one."""
    groups = [{k} for k in range(shares.shape[1])]
    history = [(groups, entropy(shares))]
    while len(groups) > 1:
        tried = []
        for a, b in itertools.combinations(range(len(groups)), 2):
            rest = [group for i, group in enumerate(groups) if i not in (a, b)]
            partition = [*rest, groups[a] | groups[b]]
            after = entropy([[sum(row[k] for k in g) for g in partition] for row in shares])
            rows = sum(row[k] for row in shares for k in groups[a] | groups[b])
            tried.append((partition, after, (history[-1][1] - after) / rows))
        groups, after, _ = max(tried, key=lambda each: each[2])
        history.append((groups, after))
    return history


def partition_of(labels):
    return {frozenset(k for k, label in enumerate(labels) if label == each) for each in labels}


@pytest.mark.parametrize("seed", range(3))
def test_each_step_takes_most_from_the_entropy_per_row(seed):
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixture = StudentTMixture(6, 2, generator=seed, dtype=torch.float64).fit(x)
    merging = merge_components(mixture, x)
    history = merged_step_by_step(mixture(x).numpy())
    for n_clusters, (groups, expected) in zip(range(6, 0, -1), history):
        assert partition_of(merging.labels(n_clusters)) == {frozenset(group) for group in groups}
        assert merging.entropies[6 - n_clusters] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_allclose(merging.linkage[:, 2], merging.entropies[0] - merging.entropies[1:], atol=1e-12)


def test_the_linkage_is_scipys():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    merging = merge_components(StudentTMixture(7, 3, generator=0).fit(x), x)
    assert hierarchy.is_valid_linkage(merging.linkage)
    assert hierarchy.is_monotonic(merging.linkage)
    for n_clusters in range(1, 8):
        cut = hierarchy.fcluster(merging.linkage, n_clusters, "maxclust")
        assert partition_of(merging.labels(n_clusters)) == partition_of(cut)
        assert set(merging.labels(n_clusters)) == set(range(n_clusters))


def test_a_ring_and_a_blob_are_two_clusters_of_many_components():
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.rand(800, generator=generator)
    ring = 8 * torch.stack([angle.cos(), angle.sin()], dim=1) + 0.5 * torch.randn(800, 2, generator=generator)
    x = torch.cat([ring, 0.7 * torch.randn(400, 2, generator=generator)])
    mixture = StudentTMixture(12, 2, covariance_type="full", n_init=3, generator=0).fit(x)
    mixture.component_labels = merge_components(mixture, x).labels(2)
    found = mixture.class_probabilities(x).argmax(1)
    truth = (torch.arange(1200) >= 800).long()
    agreement = (found == truth).float().mean()
    assert max(agreement, 1 - agreement) > 0.99


def test_halves_of_a_component_are_merged_first():
    x = torch.cat([torch.randn(200, 2), 9 + torch.randn(200, 2)])
    means = [[0.0, 0.0], [9.0, 9.0], [0.0, 0.0]]
    mixture = StudentTMixture.from_parameters([0.2, 0.5, 0.3], means, torch.eye(2).expand(3, -1, -1))
    assert merge_components(mixture, x).labels(2) == [0, 1, 0]
    assert merge_components(mixture, x).labels(3) == [0, 1, 2]


def test_large_clusters_that_touch_are_not_merged_before_the_halves_of_a_small_one():
    generator = torch.Generator().manual_seed(0)
    large = [torch.randn(2000, 2, generator=generator) + torch.tensor([shift, 0.0]) for shift in (0.0, 3.5)]
    small = 0.3 * torch.randn(30, 2, generator=generator) + torch.tensor([0.0, 30.0])
    means = [[0.0, 0.0], [3.5, 0.0], [0.0, 30.0], [0.0, 30.0]]
    mixture = StudentTMixture.from_parameters([0.5, 0.5, 0.01, 0.01], means, torch.eye(2).expand(4, -1, -1), dof=30.0)
    assert merge_components(mixture, torch.cat([*large, small])).labels(3) == [0, 1, 2, 2]


def test_files_and_arrays_give_the_same(tmp_path):
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(5, 2, generator=0, chunk_size=64).fit(x)
    np.save(tmp_path / "x.npy", x.numpy())
    ways = [merge_components(mixture, data).linkage for data in (x, x.numpy(), tmp_path / "x.npy")]
    np.testing.assert_allclose(ways[1], ways[0], rtol=1e-5)
    np.testing.assert_array_equal(ways[2], ways[1])


def test_one_component_is_one_cluster():
    x = torch.randn(20, 2)
    merging = merge_components(StudentTMixture(1, 2).fit(x), x)
    assert merging.labels(1) == [0]
    assert merging.linkage.shape == (0, 4)
    assert merging.entropies.tolist() == [0]


@pytest.mark.parametrize("n_clusters", [0, 4, 1.5, True])
def test_numbers_of_clusters_are_checked(n_clusters):
    x = torch.randn(50, 2)
    merging = merge_components(StudentTMixture(3, 2, generator=0).fit(x), x)
    with pytest.raises(ValueError, match="n_clusters must"):
        merging.labels(n_clusters)


def test_what_is_not_fitted_cannot_be_merged():
    with pytest.raises(RuntimeError, match="not fitted"):
        merge_components(StudentTMixture(3, 2), torch.randn(5, 2))


def test_no_rows_tell_nothing():
    mixture = StudentTMixture(3, 2, generator=0).fit(torch.randn(50, 2))
    with pytest.raises(ValueError, match="data must have rows"):
        merge_components(mixture, torch.zeros(0, 2))


def test_components_without_rows_are_merged_in_the_end():
    mixture = StudentTMixture.from_parameters(
        [0.4, 0.6, 0.0, 0.0], [[0.0, 0.0], [1.0, 1.0], [5.0, 5.0], [6.0, 6.0]], torch.eye(2).expand(4, -1, -1)
    )
    merging = merge_components(mixture, torch.randn(50, 2))
    assert merging.labels(3)[:2] == [0, 0]
    assert np.isfinite(merging.linkage).all()


def test_a_dendrogram_has_a_line_for_every_merge():
    x = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    merging = merge_components(StudentTMixture(5, 2, generator=0).fit(x), x)
    ax = plot.dendrogram(merging)
    heights = sorted(segment[:, 1].max() for each in ax.collections for segment in map(np.array, each.get_segments()))
    np.testing.assert_allclose(heights, sorted(merging.linkage[:, 2]))
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        str(leaf) for leaf in hierarchy.leaves_list(merging.linkage)
    ]
    plt.close("all")
