"""Choosing the number of components."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch

from tmixture import plot, select_components

from .helpers import of


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


def test_structures_are_compared_by_the_same_criterion():
    """Correlated features: a full matrix explains them with one component, a diagonal one cannot."""
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[3.0, 2.9], [0.0, 0.3]])
    settings = dict(dof=float("inf"), generator=0)
    structures = ["diag", "full", "lowrank", "full"]
    selection = select_components(x, [1, 2], 2, covariance_type=structures, rank=1, **settings)
    tried = [(c.n_components, c.covariance_type) for c in selection.candidates]
    assert tried == [(K, structure) for K in (1, 2) for structure in ("diag", "full", "lowrank")]
    for candidate in selection.candidates:
        alone = select_components(x, [candidate.n_components], 2, **of(candidate.covariance_type), **settings)
        assert alone.candidates == [candidate]
    best = min(selection.candidates, key=lambda c: c.bic)
    assert (best.n_components, best.covariance_type) == (1, "full")
    assert selection.chosen is best
    assert (selection.best.n_components, selection.best.covariance_type) == (1, "full")
    assert [line.split()[1] for line in repr(selection).splitlines() if line.endswith("<- bic")] == ["full"]
    drawn = {line.get_label(): line for line in plot.criterion(selection).get_lines()}
    diagonal = [[c.n_components, c.bic] for c in selection.candidates if c.covariance_type == "diag"]
    assert drawn["diag"].get_xydata().tolist() == diagonal
    assert drawn["chosen"].get_xydata().tolist() == [[1, best.bic]]


def test_integer_weights_count_as_repeated_rows(blobs):
    weight = torch.arange(len(blobs)) % 3
    weighted, repeated = (
        select_components(*arguments, covariance_type="full", generator=0, tol=1e-7, max_iter=500)
        for arguments in ((blobs, [2, 3], 2, weight), (blobs.repeat_interleave(weight, 0), [2, 3], 2))
    )
    for one, other in zip(weighted.candidates, repeated.candidates):
        assert one.bic == pytest.approx(other.bic, rel=1e-6)
        assert one.icl == pytest.approx(other.icl, rel=1e-6)


def test_numbers_above_that_of_rows_cost_no_other_fit(blobs):
    few = torch.cat([blobs[:20], blobs[150:170]])
    with pytest.warns(RuntimeWarning, match=r"n_components=\[41, 80\] have no fit: data has 40 rows") as caught:
        selection = select_components(few, [1, 41, 2, 80], 2, generator=0)
    assert [warning.filename for warning in caught] == [__file__]
    assert [candidate.n_components for candidate in selection.candidates] == [1, 41, 2, 80]
    assert [candidate.failure is None for candidate in selection.candidates] == [True, False, True, False]
    assert "    41      diag no fit: data has 40 rows" in repr(selection)
    assert selection.best.score(few) == pytest.approx(selection.chosen.log_likelihood)
    with pytest.raises(ValueError, match="n_components=41 needs at least as many"):
        select_components(few, [41, 80], 2)


@pytest.mark.parametrize(
    ("numbers", "settings", "message"),
    [
        ([1], {"criterion": "dic"}, "criterion must be one of"),
        ([], {}, "n_components is empty"),
        ([1], {"covariance_type": []}, "covariance_type is empty"),
        (5, {}, r"n_components must be the numbers to try, such as \[5\], got 5"),
        ([1, 2, 0], {}, "n_components must be a positive integer, got 0"),
        ([3, 2], {"max_candidates": 3}, "max_candidates must be at most n_components=2"),
        ([1], {"covariance_type": ["full", "round"]}, "covariance_type must be one of"),
        ([1], {"covariance_type": ["full", "lowrank"]}, "needs a rank"),
        ([1], {"covariance_type": ["full", "diag"], "rank": 1}, "rank is for covariance_type='lowrank' only"),
    ],
)
def test_wrong_arguments_are_found_before_the_first_fit(numbers, settings, message):
    def unread():
        raise AssertionError("the data was read")

    data = type("Unread", (), {"__iter__": lambda self: unread()})()
    with pytest.raises(ValueError, match=message):
        select_components(data, numbers, 2, **settings)


def test_unknown_arguments(blobs):
    with pytest.raises(TypeError, match="covariance"):
        select_components(blobs, [1], 2, covariance="full")


def test_a_sample_is_fitted_and_all_rows_judge(blobs, tmp_path):
    """A few of the rows, drawn by their weights, are enough to find the number; the criteria are of all of them."""
    data = torch.cat([blobs + 0.01 * i for i in range(10)])
    np.save(tmp_path / "x.npy", data.numpy())
    read = []

    class Counted:
        def __iter__(self):
            yield data[:700]
            read.append(1)
            yield data[700:]

    settings = {"covariance_type": "full", "dof": float("inf"), "generator": 0}
    found = select_components(Counted(), range(2, 6), 2, fit_rows=300, **settings)
    assert len(read) == 2, "one pass draws the sample, one judges"
    assert found.best.n_components == 3
    for candidate in found.candidates:
        assert abs(candidate.fitted_log_likelihood - candidate.log_likelihood) < 0.2
        assert candidate.fitted_log_likelihood != candidate.log_likelihood
    assert found.chosen.bic == pytest.approx(found.best.bic(data))
    weights = torch.zeros(len(data))
    weights[:450] = 1
    part = select_components(data, [2, 3], 2, weights, fit_rows=200, generator=0)
    assert part.chosen.log_likelihood == pytest.approx(part.best.score(data, weights))
    again = select_components(str(tmp_path / "x.npy"), [3], 2, covariance_type="full", fit_rows=300, generator=0)
    assert again.best.means.allclose(
        select_components(data, [3], 2, covariance_type="full", fit_rows=300, generator=0).best.means
    )
    with pytest.raises(ValueError, match="fit_rows must be a positive integer"):
        select_components(data, [2], 2, fit_rows=0)


def test_without_a_sample_the_fitted_rows_are_all(selection):
    for candidate in selection.candidates:
        assert candidate.fitted_log_likelihood == candidate.log_likelihood
