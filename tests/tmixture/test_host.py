"""Numbers in buffers are known to the host, and never stale."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tmixture.host import number, set_number


class Counter(nn.Module):
    def __init__(self, value=3):
        super().__init__()
        self.register_buffer("n", torch.tensor(value))


def loaded(counter):
    counter.load_state_dict({"n": torch.tensor(8)})
    return counter, 8


def in_place(counter):
    counter.n.add_(1)
    return counter, 4


def replaced(counter):
    counter.n = torch.tensor(9)
    return counter, 9


def set_again(counter):
    set_number(counter, "n", 12)
    return counter, 12


def moved(counter):
    counter.n.fill_(6)
    return counter.double(), 6


def broadcast(counter):
    """As other processes write into it."""
    torch._foreach_copy_([counter.n], [torch.tensor(7)])
    return counter, 7


def pickled(counter):
    counter.n.add_(2)
    return pickle.loads(pickle.dumps(counter)), 5


def copied(counter):
    other = copy.deepcopy(counter)
    other.n.add_(2)
    return other, 5


def saved(counter):
    file = io.BytesIO()
    torch.save(counter, file)
    counter.n.add_(5)
    file.seek(0)
    return torch.load(file, weights_only=False), 3


@pytest.mark.parametrize(
    "change",
    [loaded, in_place, replaced, set_again, moved, broadcast, pickled, copied, saved],
    ids=lambda f: f.__name__,
)
def test_a_number_is_that_of_the_buffer(change):
    counter = Counter()
    assert number(counter, "n") == 3
    counter, expected = change(counter)
    assert number(counter, "n") == expected == counter.n
    set_number(counter, "n", 1)
    assert number(counter, "n") == 1 == counter.n


def test_made_in_inference_mode():
    with torch.inference_mode():
        counter = Counter()
        assert number(counter, "n") == 3
        counter.n.add_(1)
        assert number(counter, "n") == 4
        set_number(counter, "n", 5)
    assert number(counter, "n") == 5
