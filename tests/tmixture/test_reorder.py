"""Renumbering the components changes nothing but their numbers."""

import pytest
import torch

from tmixture import StudentTMixture

from .helpers import STRUCTURES, of


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(3, 4, generator=generator)
    return (centres[:, None] + torch.randn(3, 60, 4, generator=generator)).reshape(-1, 4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_density_and_the_stream_stay_the_same(data, structure):
    order = torch.tensor([2, 0, 1])
    one = StudentTMixture(3, 4, **of(structure), learn_dof="component", generator=0).fit(data)
    other = StudentTMixture(3, 4, **of(structure), learn_dof="component", generator=0).fit(data).reorder(order)
    torch.testing.assert_close(other(data), one(data)[:, order])
    for batch in data[torch.randperm(len(data), generator=torch.Generator().manual_seed(1))].split(30):
        one.partial_fit(batch)
        other.partial_fit(batch)
    torch.testing.assert_close(other(data), one(data)[:, order], rtol=1e-4, atol=1e-5)


def test_what_is_no_permutation_is_refused(data):
    mixture = StudentTMixture(3, 4, generator=0).fit(data)
    with pytest.raises(ValueError, match=r"permutation of 0 … 2, got \[0, 0, 1\]"):
        mixture.reorder([0, 0, 1])
