"""Matching of clusters against all permutations."""

import itertools

import torch

from tmixture.losses.matching import churn, contingency, match_components


def test_the_matching_keeps_the_most_labels_of_all_permutations():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        old, new = torch.randint(5, (2, 60), generator=generator)
        table = contingency(old, new, 5)
        order = match_components(table)
        best = max(
            sum(int((new[old == k] == permutation[k]).sum()) for k in range(5))
            for permutation in itertools.permutations(range(5))
        )
        renumbered = order.argsort()[new]
        assert int((renumbered == old).sum()) == best
        assert churn(table[:, order]) == 1 - best / 60


def test_a_renumbering_is_undone():
    old = torch.arange(50) % 5
    order = match_components(contingency(old, torch.tensor([3, 0, 4, 1, 2])[old], 5))
    assert order.tolist() == [3, 0, 4, 1, 2]
