"""Pictures of a mixture: what it fitted, how the fit went, and which rows it is unsure of. Needs matplotlib.

Every function draws into the Axes it is given, or into new ones, and returns them. What lies on top of each other
differs in line style and lightness, so that the pictures can be read in greyscale.

    from tmixture import plot
    plot.density(mixture, data).figure.savefig("density.png")
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from scipy.cluster import hierarchy
from torch import Tensor

from tmixture import reservoir
from tmixture.data.chunks import Data
from tmixture.merging import Merging
from tmixture.mixture import StudentTMixture
from tmixture.selection import Selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows that are drawn of larger data, chosen at random.
DRAWN_ROWS = 5000
# Points along an axis at which a density is evaluated.
GRID_POINTS = 200
# Bars of a histogram.
BINS = 50
# What a picture shows of a component, and of the data: far outliers would shrink everything else to a dot.
SHOWN_SHARE, SHOWN_QUANTILES = 0.95, (0.005, 0.995)

LIGHT, MEDIUM, DARK = "0.75", "0.45", "0.0"
LINE_STYLES = ("o-", "s--", "^:", "d-.")


@torch.no_grad()
def density(
    mixture: StudentTMixture,
    data: Data | None = None,
    *,
    shares: tuple[float, ...] = (0.5, 0.9),
    ax: Axes | None = None,
) -> Axes:
    """The density of a mixture in one or two dimensions, and its components.

    In one dimension, the density (solid) is the sum of the components π_k·T_k (dashed). In two dimensions, darker means
    denser on a logarithmic scale, and each component is a numbered cross within ellipses that hold a given share of it:
    those of the scale matrix, {δ_k ≤ ν((1 − share)^(−2/ν) − 1)}.

    Args:
        mixture: fitted, with 1 or 2 features.
        data: rows to show with it, whatever `fit` takes; of many, a random sample. The legend says how many of them lie
            outside the picture.
        shares: what the ellipses of a component hold of it, between 0 and 1; the last one is drawn solid.
        ax: where to draw.

    Raises:
        RuntimeError: the mixture is not fitted.
        ValueError: it has more than two features.
    """
    _require_fitted(mixture)
    if mixture.n_features > 2:
        raise ValueError(
            f"mixture has n_features={mixture.n_features}, but a density can be drawn in 1 or 2 dimensions: fit one to "
            "two features or principal components"
        )
    if not shares or not all(0 < share < 1 for share in shares):
        raise ValueError(f"shares must be numbers between 0 and 1, got {shares!r}")
    rows = None if data is None else _sample(mixture, data)
    low, high = _window(mixture, rows)
    ax = _axes(ax)
    if mixture.n_features == 1:
        _draw_curves(ax, mixture, rows, low[0], high[0])
    else:
        _draw_ellipses(ax, mixture, rows, low, high, shares)
    return ax


def history(mixture: StudentTMixture, *, ax: Axes | None = None) -> Axes:
    """The mean log-likelihood of the last `fit` after each EM iteration; the title says whether it converged."""
    _require_fitted(mixture)
    if not mixture.history_:
        raise RuntimeError("this StudentTMixture has no history: it comes from fit, not from partial_fit or parameters")
    ax = _axes(ax)
    ax.plot(range(len(mixture.history_)), mixture.history_, "o-", color=DARK, markersize=3)
    outcome = "converged" if mixture.converged_ else "not converged"
    ax.set(xlabel="EM iteration", ylabel="mean log-likelihood", title=f"{outcome} after {mixture.n_iter_} iterations")
    _count_on(ax)
    return ax


def criterion(selection: Selection, *, ax: Axes | None = None) -> Axes:
    """The criterion against the number of components, and what `select_components` chose.

    There is a line for each of the three information criteria, or of the one that was chosen by for each structure, if
    several were tried.
    """
    ax = _axes(ax)
    tried = selection.candidates
    structures = list(dict.fromkeys(candidate.covariance_type for candidate in tried))
    lines = {name.upper(): (name, tried) for name in ("bic", "aic", "icl")}
    if len(structures) > 1:
        lines = {s: (selection.criterion, [c for c in tried if c.covariance_type == s]) for s in structures}
    for (label, (name, fitted)), style in zip(lines.items(), cycle(LINE_STYLES)):
        color = DARK if name == selection.criterion else MEDIUM
        ax.plot([c.n_components for c in fitted], [getattr(c, name) for c in fitted], style, color=color, label=label)
    chosen = selection.chosen
    ax.plot(chosen.n_components, getattr(chosen, selection.criterion), "*", color=DARK, markersize=14, label="chosen")
    ax.set(xlabel="number of components K", ylabel="criterion (smaller is better)")
    _count_on(ax)
    ax.legend()
    return ax


def dendrogram(merging: Merging, *, ax: Axes | None = None) -> Axes:
    """Which components were merged: the higher the line that joins two clusters, the fewer rows they share.

    The height is the entropy, in nats a row, that is gone when they are merged. A long way up to the next line means
    that the clusters below it are apart.
    """
    ax = _axes(ax)
    hierarchy.dendrogram(merging.linkage, ax=ax, color_threshold=0, above_threshold_color=DARK)
    ax.set(xlabel="component", ylabel="entropy gone (nats a row)")
    return ax


@torch.no_grad()
def responsibility_entropy(mixture: StudentTMixture, data: Data, *, ax: Axes | None = None) -> Axes:
    """How unsure the mixture is of each row: a histogram of the entropy −Σ_k r_ik·log r_ik of its responsibilities.

    At 0 a row belongs to one component alone, at log K to all alike. The dashed line is the mean; N times it is half of
    what ICL adds to BIC.

    Args:
        mixture: fitted, with at least two components.
        data: whatever `fit` takes; one pass, a chunk at a time.
        ax: where to draw.
    """
    _require_fitted(mixture)
    if mixture.n_components == 1:
        raise ValueError("mixture has one component, to which every row belongs: there is no entropy to draw")
    edges = np.linspace(0, math.log(mixture.n_components), BINS + 1)
    counts, total, n_rows = np.zeros(BINS), 0.0, 0
    for x in _blocks(mixture, data):
        entropy = torch.special.entr(mixture(x)).sum(1).clamp(max=edges[-1]).double().cpu().numpy()
        counts += np.histogram(entropy, edges)[0]
        total, n_rows = total + entropy.sum(), n_rows + len(entropy)
    ax = _axes(ax)
    ax.stairs(counts, edges, fill=True, color=LIGHT)
    ax.axvline(total / n_rows, color=DARK, linestyle="--", label=f"mean {total / n_rows:.3g}")
    ax.set(
        xlabel=f"entropy of the responsibilities (at most log K = {edges[-1]:.3g})",
        ylabel="rows",
        yscale="log",
        ylim=(0.5, None),
    )
    ax.legend()
    return ax


@torch.no_grad()
def outlier_weights(mixture: StudentTMixture, data: Data, *, ax: Axes | None = None) -> Axes:
    """How far out the rows lie: a histogram of the outlier weights u_ik, in which row i counts r_ik for component k.

    The dashed line is what rows drawn from the mixture itself would give, u ~ (ν+d)/ν·Beta(ν/2, d/2). More rows than
    that at the left are more outliers than the tails of the mixture allow for. Gaussian components (ν = ∞), whose
    weights are all 1, are left out.

    Args:
        mixture: fitted, not all of its ν infinite.
        data: whatever `fit` takes; one pass, a chunk at a time.
        ax: where to draw.
    """
    _require_fitted(mixture)
    parameters = [getattr(mixture, name).detach().double().cpu().numpy() for name in ("weights", "dof")]
    student = np.isfinite(parameters[1])
    if not student.any():
        raise ValueError("mixture is Gaussian (ν = ∞): all of its outlier weights are 1, there is nothing to draw")
    weights, dof = (values[student] for values in parameters)
    d = mixture.n_features
    # Few rows come near the largest u = (ν+d)/ν where d is large: the picture ends where the law practically does.
    law = stats.beta(dof[:, None] / 2, d / 2, scale=(dof[:, None] + d) / dof[:, None])
    edges = np.linspace(0, law.ppf(1 - 1e-6).max(), BINS + 1)
    counts, n_rows = np.zeros(BINS), 0
    for x in _blocks(mixture, data):
        u, r = (values.double().cpu().numpy()[:, student] for values in (mixture.outlier_weights(x), mixture(x)))
        counts += np.histogram(u.clip(max=edges[-1]), edges, weights=r)[0]
        n_rows += len(u)
    expected = n_rows * weights @ np.diff(law.cdf(edges))
    ax = _axes(ax)
    ax.stairs(counts, edges, fill=True, color=LIGHT, label="data")
    ax.stairs(expected, edges, color=DARK, linestyle="--", label="expected of the mixture")
    ax.set(xlabel="outlier weight u (small: far from its component)", ylabel="rows")
    ax.legend()
    return ax


def _draw_curves(ax: Axes, mixture: StudentTMixture, rows: np.ndarray | None, low: float, high: float) -> None:
    """The density of one feature, and the terms that add up to it."""
    if rows is not None:
        inside = rows[(rows >= low) & (rows <= high)]
        bins = np.linspace(low, high, BINS + 1)
        counts = np.histogram(inside, bins)[0] / len(rows) / np.diff(bins)
        ax.stairs(counts, bins, fill=True, color=LIGHT, label=_rows_label(len(rows), len(rows) - len(inside)))
    x = np.linspace(low, high, 5 * GRID_POINTS)
    terms = _log_terms(mixture, x[:, None]).exp().numpy()
    ax.plot(x, terms.sum(1), color=DARK, linestyle="-", label="mixture")
    for k, term in enumerate(terms.T):
        ax.plot(x, term, color=MEDIUM, linestyle="--", label=None if k else "components")
    ax.set(xlabel="x", ylabel="density", xlim=(low, high), ylim=(0, None))
    ax.legend()


def _draw_ellipses(
    ax: Axes,
    mixture: StudentTMixture,
    rows: np.ndarray | None,
    low: np.ndarray,
    high: np.ndarray,
    shares: tuple[float, ...],
) -> None:
    """The density of two features in shades of grey, and the components as ellipses."""
    from matplotlib.patches import Ellipse

    grid = [np.linspace(low[j], high[j], GRID_POINTS) for j in range(2)]
    points = np.stack(np.meshgrid(*grid), axis=-1).reshape(-1, 2)
    log_density = _log_terms(mixture, points).logsumexp(1).reshape(GRID_POINTS, GRID_POINTS).numpy()
    # Six shades, the lightest of which begins at a thousandth of the highest density.
    levels = log_density.max() + np.linspace(-math.log(1000), 1e-6, 7)
    ax.contourf(*grid, log_density, levels=levels, colors=[str(shade) for shade in np.linspace(0.97, 0.7, 6)])
    if rows is not None:
        outside = ((rows < low) | (rows > high)).any(1)
        label = _rows_label(len(rows), int(outside.sum()))
        ax.plot(*rows[~outside].T, ".", color=MEDIUM, markersize=2, label=label, zorder=1.5)
    means, scales, dof = (getattr(mixture, name).detach().double().cpu() for name in ("means", "scales", "dof"))
    variances, directions = np.linalg.eigh(scales)
    for j, share in enumerate(shares):
        style = "-" if j == len(shares) - 1 else ("--", ":", "-.")[j % 3]
        for k, radius in enumerate(_radius(dof, share)):
            width, height = 2 * radius * np.sqrt(variances[k])
            angle = math.degrees(math.atan2(directions[k, 1, 0], directions[k, 0, 0]))
            ellipse = Ellipse(means[k], width, height, angle=angle, fill=False, linestyle=style)
            ellipse.set_label("" if k else f"{share:.0%} of a component")
            ax.add_patch(ellipse)
    ax.plot(*means.T, "+", color=DARK, markersize=8)
    for k, mean in enumerate(means.tolist()):
        ax.annotate(str(k), mean, xytext=(4, 4), textcoords="offset points", annotation_clip=True)
    ax.set(xlabel="feature 0", ylabel="feature 1", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    ax.legend()


def _radius(dof: Tensor, share: float) -> np.ndarray:
    """Mahalanobis radius (K,) within which a two-dimensional component has that share: P(δ ≤ r²) in closed form."""
    remaining = math.log(1 - share)
    squared = torch.where(dof.isinf(), -2 * remaining, dof * torch.expm1(-2 * remaining / dof))
    return squared.sqrt().numpy()


def _window(mixture: StudentTMixture, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (d,) of what is shown: most of each component, and most of the rows."""
    means, dof = (getattr(mixture, name).detach().double().cpu().numpy() for name in ("means", "dof"))
    deviations = mixture.scales.detach().double().cpu().diagonal(dim1=1, dim2=2).sqrt().numpy()
    reach = deviations * stats.t.ppf((1 + SHOWN_SHARE) / 2, dof)[:, None]
    ends = np.concatenate([means - reach, means + reach])
    if rows is not None:
        ends = np.concatenate([ends, np.quantile(rows, SHOWN_QUANTILES, axis=0)])
    low, high = ends.min(0), ends.max(0)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _log_terms(mixture: StudentTMixture, points: np.ndarray) -> Tensor:
    """Log π_k·T_k, of the terms of the density, at points (n, d): (n, K)."""
    x = torch.as_tensor(points).to(mixture.means.device)
    return (mixture.component_log_prob(x) + mixture.weights.log()).double().cpu()


def _blocks(mixture: StudentTMixture, data: Data) -> Iterator[Tensor]:
    """The rows of the data, a chunk at a time."""
    for chunk in mixture.chunks(data):
        yield chunk.x


def _sample(mixture: StudentTMixture, data: Data) -> np.ndarray:
    """Rows of the data: all, or a random sample that is the same every time."""
    generator = torch.Generator().manual_seed(0)
    return reservoir.draw_sample(mixture.chunks(data), DRAWN_ROWS, torch.float32, generator).x.double().cpu().numpy()


def _count_on(ax: Axes) -> None:
    """Ticks at integers, for an x that counts something."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rows_label(drawn: int, outside: int) -> str:
    return f"{drawn} rows" + (f", {outside} of them outside" if outside else "")


def _require_fitted(mixture: StudentTMixture) -> None:
    if not isinstance(mixture, StudentTMixture):
        raise ValueError(
            f"mixture must be a StudentTMixture, got {type(mixture).__name__}; that of a scikit-learn estimator is its "
            "mixture_"
        )
    mixture.require_fitted()


def _axes(ax: Axes | None) -> Axes:
    """The Axes given, or new ones."""
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tmixture.plot needs matplotlib: pip install 'tmixture[plot]'") from error
    return plt.subplots(layout="constrained")[1]
