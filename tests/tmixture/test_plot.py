"""What the pictures show, read from the artists that were drawn."""

import math
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Ellipse
from scipy import stats

from tmixture import StudentTMixture, plot, select_components

matplotlib.use("Agg")

SCALES = np.array([[[4.0, 1.2], [1.2, 1.0]], [[1.0, -0.5], [-0.5, 2.0]]])
MEANS = np.array([[0.0, 0.0], [9.0, 4.0]])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def planar(dof=3.0):
    return StudentTMixture.from_parameters([0.3, 0.7], MEANS, SCALES, dof=dof)


def linear():
    scales = np.array([1.0, 4.0]).reshape(2, 1, 1)
    return StudentTMixture.from_parameters([0.3, 0.7], np.array([[-3.0], [4.0]]), scales, dof=[2.5, float("inf")])


def labelled(artists):
    return {artist.get_label(): artist for artist in artists}


def bars(ax):
    """The values and edges of the histograms, by label."""
    return {patch.get_label(): patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")}


@pytest.mark.parametrize("dof", [3.0, 60.0, float("inf")])
def test_ellipses_are_the_scale_matrices_and_hold_their_share(dof):
    ax = plot.density(planar(dof), shares=(0.5, 0.9))
    ellipses = [patch for patch in ax.patches if isinstance(patch, Ellipse)]
    assert len(ellipses) == 4
    for i, ellipse in enumerate(ellipses):
        share, k = (0.5, 0.9)[i // 2], i % 2
        assert ellipse.get_center() == pytest.approx(MEANS[k])
        # The axes are the eigenvectors: with half axes a and b, the matrix is R·diag(a², b²)·Rᵀ up to the radius.
        cos, sin = math.cos(math.radians(ellipse.angle)), math.sin(math.radians(ellipse.angle))
        rotation = np.array([[cos, -sin], [sin, cos]])
        matrix = rotation @ np.diag([ellipse.width**2 / 4, ellipse.height**2 / 4]) @ rotation.T
        squared_radius = matrix[0, 0] / SCALES[k, 0, 0]
        np.testing.assert_allclose(matrix, squared_radius * SCALES[k], rtol=1e-6)
        law = stats.chi2(2) if math.isinf(dof) else stats.f(2, dof, scale=2)
        assert law.cdf(squared_radius) == pytest.approx(share, rel=1e-6)


def test_line_styles_tell_the_ellipses_apart():
    ellipses = labelled(patch for patch in plot.density(planar()).patches if isinstance(patch, Ellipse))
    assert ellipses["50% of a component"].get_linestyle() != ellipses["90% of a component"].get_linestyle()


def test_means_are_numbered_and_rows_shown():
    mixture = planar()
    rows, _ = mixture.sample(400, generator=torch.Generator().manual_seed(0))
    rows[0] = 1e6
    ax = plot.density(mixture, rows)
    assert [(text.get_text(), *text.xy) for text in ax.texts] == [("0", 0.0, 0.0), ("1", 9.0, 4.0)]
    label, points = next((line.get_label(), line.get_xydata()) for line in ax.lines if "rows" in line.get_label())
    window = np.array([ax.get_xlim(), ax.get_ylim()])
    inside = ((rows.numpy() >= window[:, 0]) & (rows.numpy() <= window[:, 1])).all(1)
    assert 350 < inside.sum() < 400
    np.testing.assert_array_equal(points, rows[inside])
    assert label == f"400 rows, {(~inside).sum()} of them outside"


def test_shades_follow_the_density():
    mixture = planar()
    ax = plot.density(mixture)
    lowest = {}  # log-density of each shade
    for collection in ax.collections:
        shades = collection.get_facecolors()[:, 0]
        for i, path in enumerate(collection.get_paths()):
            shade, value = shades[i % len(shades)], float(mixture.log_prob(path.vertices).min())
            lowest[shade] = min(value, lowest.get(shade, np.inf))
    # The lightest begins at a thousandth of the highest density, and each is as much denser than the last.
    highest = float(mixture.log_prob(MEANS).max())
    expected = highest - np.log(1000) * np.arange(6, 0, -1) / 6
    np.testing.assert_allclose([lowest[shade] for shade in sorted(lowest, reverse=True)], expected, atol=0.1)


def test_a_density_of_one_feature_is_the_sum_of_its_components():
    mixture = linear()
    rows, _ = mixture.sample(2000, generator=torch.Generator().manual_seed(0))
    ax = plot.density(mixture, rows)
    total, *terms = (line.get_xydata() for line in ax.lines)
    expected = [0.3 * stats.t(2.5, -3, 1).pdf(total[:, 0]), 0.7 * stats.norm(4, 2).pdf(total[:, 0])]
    np.testing.assert_allclose([term[:, 1] for term in terms], expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(total[:, 1], sum(expected), rtol=1e-5)
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    values, edges, _ = next(iter(bars(ax).values()))
    inside = (rows >= edges[0]) & (rows <= edges[-1])
    assert (values * np.diff(edges)).sum() == pytest.approx(float(inside.double().mean()))


def test_history():
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(2, 2, generator=0, max_iter=200).fit(rows)
    ax = plot.history(mixture)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), list(enumerate(mixture.history_)))
    assert ax.get_title() == f"converged after {mixture.n_iter_} iterations"


def test_criterion():
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    selection = select_components(rows, [1, 2, 4], 2, criterion="aic", generator=0, dof=float("inf"))
    lines = labelled(plot.criterion(selection).lines)
    for name in ("bic", "aic", "icl"):
        expected = [[c.n_components, getattr(c, name)] for c in selection.candidates]
        np.testing.assert_array_equal(lines[name.upper()].get_xydata(), expected)
    assert len({lines[name].get_linestyle() for name in ("BIC", "AIC", "ICL")}) == 3
    smallest = min(selection.candidates, key=lambda candidate: candidate.aic)
    np.testing.assert_array_equal(lines["chosen"].get_xydata(), [[smallest.n_components, smallest.aic]])


def test_entropy_is_that_of_the_responsibilities():
    mixture = planar()
    mixture.chunk_size = 70
    rows, _ = mixture.sample(500, generator=torch.Generator().manual_seed(0))
    ax = plot.responsibility_entropy(mixture, rows)
    expected = stats.entropy(mixture(rows).numpy(), axis=1)
    counts, edges, _ = ax.patches[0].get_data()
    np.testing.assert_array_equal(counts, np.histogram(expected, edges)[0])
    assert (edges[0], edges[-1]) == pytest.approx((0, math.log(2)))
    assert ax.lines[0].get_xdata()[0] == pytest.approx(expected.mean())
    # What the docstring says of ICL.
    criteria = mixture.information_criteria(rows)
    assert 2 * 500 * ax.lines[0].get_xdata()[0] == pytest.approx(criteria["icl"] - criteria["bic"], rel=1e-5)


@pytest.mark.parametrize(("mixture", "student"), [(planar(dof=[1.5, 8.0]), [0, 1]), (linear(), [0])])
def test_outlier_weights_and_what_is_expected_of_them(mixture, student):
    rows, _ = mixture.sample(20_000, generator=torch.Generator().manual_seed(0))
    counts, edges, _ = bars(plot.outlier_weights(mixture, rows))["data"]
    expected, _, _ = bars(plot.outlier_weights(mixture, rows))["expected of the mixture"]
    u, r = mixture.outlier_weights(rows)[:, student].numpy(), mixture(rows)[:, student].numpy()
    np.testing.assert_allclose(counts, np.histogram(u, edges, weights=r)[0], rtol=1e-5, atol=1e-3)
    # Rows of the mixture itself: the counts vary about what is expected of them.
    assert expected.sum() == pytest.approx(20_000 * float(mixture.weights[student].sum()), rel=1e-4)
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected + 1)).all()


def test_rows_that_fit_nowhere_stand_out():
    mixture = planar()
    rows, _ = mixture.sample(1000, generator=torch.Generator().manual_seed(0))
    far = torch.cat([rows, torch.full((300, 2), 80.0, dtype=rows.dtype)])
    drawn = bars(plot.outlier_weights(mixture, far))
    assert drawn["data"][0][0] > 5 * drawn["expected of the mixture"][0][0]


def test_axes_are_used_and_returned():
    mixture = StudentTMixture(2, 2, generator=0).fit(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)))
    rows = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    draws = [
        lambda ax: plot.density(mixture, rows, ax=ax),
        lambda ax: plot.history(mixture, ax=ax),
        lambda ax: plot.responsibility_entropy(mixture, rows, ax=ax),
        lambda ax: plot.outlier_weights(mixture, rows, ax=ax),
    ]
    _, axes = plt.subplots(1, 4)
    for draw, ax in zip(draws, axes):
        assert draw(ax) is ax
        assert draw(None) is not ax


def test_parameters_that_require_gradients_can_be_drawn():
    mixture = planar().train_by_gradients()
    rows = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for ax in (
        plot.density(mixture, rows),
        plot.responsibility_entropy(mixture, rows),
        plot.outlier_weights(mixture, rows),
    ):
        assert ax.has_data()


def test_wrong_arguments():
    mixture, rows = planar(), torch.zeros(5, 2)
    with pytest.raises(RuntimeError, match="not fitted yet"):
        plot.density(StudentTMixture(2, 2))
    with pytest.raises(RuntimeError, match="no history"):
        plot.history(mixture)
    with pytest.raises(ValueError, match="n_features=3"):
        plot.density(StudentTMixture.from_parameters([1.0], torch.zeros(1, 3), torch.eye(3)[None]))
    with pytest.raises(ValueError, match="one component"):
        plot.responsibility_entropy(StudentTMixture.from_parameters([1.0], MEANS[:1], SCALES[:1]), rows)
    with pytest.raises(ValueError, match="Gaussian"):
        plot.outlier_weights(planar(float("inf")), rows)
    with pytest.raises(ValueError, match="shares must be"):
        plot.density(mixture, shares=(0.5, 1.0))
    with pytest.raises(ValueError, match="row 1 holds nan"):
        plot.density(mixture, torch.tensor([[0.0, 0.0], [float("nan"), 0.0]]))
    with pytest.raises(ValueError, match=r"got DensityMixin.* its mixture_"):
        plot.history(type("DensityMixin", (), {})())
    assert plt.get_fignums() == []


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tmixture\[plot\]'"):
        plot.density(planar())
