"""Choosing the number of components."""

import matplotlib

matplotlib.use("Agg")

import pytest
import torch

from tmixture import plot, select_components


@pytest.fixture(scope="module")
def blobs():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    return torch.cat([centre + torch.randn(150, 2, generator=generator) for centre in centres])


@pytest.fixture(scope="module")
def selection(blobs):
    return select_components(blobs, range(1, 6), 2, covariance_type="full", dof=float("inf"), generator=0)


def test_the_true_number_is_chosen(blobs, selection):
    assert selection.best.n_components == 3
    chosen = selection.candidates[2]
    assert chosen.bic == min(candidate.bic for candidate in selection.candidates)
    assert chosen.bic == pytest.approx(selection.best.bic(blobs))
    assert chosen.icl == pytest.approx(selection.best.icl(blobs))
    assert chosen.log_likelihood == pytest.approx(selection.best.score(blobs))


def test_other_criteria_and_repeated_numbers(blobs):
    chosen = select_components(blobs, [2, 3, 3, 2], 2, criterion="icl", generator=0)
    assert [candidate.n_components for candidate in chosen.candidates] == [2, 3]
    assert chosen.best.n_components == 3


def test_the_table_has_a_row_per_number_and_marks_the_choice(selection):
    lines = repr(selection).splitlines()
    assert [int(line.split()[0]) for line in lines[1:]] == [1, 2, 3, 4, 5]
    assert [line.endswith("<- bic") for line in lines[1:]] == [False, False, True, False, False]


def test_the_plot_shows_the_criteria(selection):
    ax = plot.criterion(selection)
    drawn = {line.get_label(): line for line in ax.get_lines()}
    assert list(drawn["BIC"].get_ydata()) == [candidate.bic for candidate in selection.candidates]
    assert list(drawn["chosen"].get_xdata()) == [3]
    assert plot.criterion(selection, ax=ax) is ax


def test_wrong_arguments(blobs):
    with pytest.raises(ValueError, match="criterion must be one of"):
        select_components(blobs, [1], 2, criterion="dic")
    with pytest.raises(ValueError, match="n_components is empty"):
        select_components(blobs, [], 2)
    with pytest.raises(TypeError, match="covariance"):
        select_components(blobs, [1], 2, covariance="full")
