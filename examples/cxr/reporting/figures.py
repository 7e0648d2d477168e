"""The report's figures: each a function that returns a matplotlib figure. Shape and lightness say what colour says."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from openTSNE import TSNE

from cxr.reporting.metrics import GROUPS, Metrics
from cxr.reporting.results import Result
from cxr.training.arms import ABLATION, ARMS

Rows = npt.NDArray[np.intp]

# Lightness falls from arm to arm, and every arm has a marker of its own.
STYLES: dict[str, dict[str, Any]] = {
    "start": {"color": "#cfcfcf", "marker": "o"},
    "meta": {"color": "#6ba3d6", "marker": "s"},
    "meta-frequency": {"color": "#b85c10", "marker": "D"},
    "cxr-cml": {"color": "#0b3d91", "marker": "^"},
    "cxr-cml-frequency": {"color": "#111111", "marker": "v"},
    "medclip": {"color": "#2e7d5b", "marker": "P"},
    "medklip": {"color": "#8e6bbf", "marker": "X"},
    "slip": {"color": "#e0a100", "marker": "p"},
    "convirt": {"color": "#c2185b", "marker": "h"},
    "gloria": {"color": "#00897b", "marker": "*"},
}
OTHER_STYLE: dict[str, Any] = {"color": "#555555", "marker": "o"}
GROUP_TITLES = {"total": "all findings", "base": "frequent findings", "rare": "rare findings"}
TSNE_IMAGES = 3000
NEIGHBOURS = 10
PSEUDO_IMAGES = 1.0  # added to observed and to expected positives: one image of a rare finding must not shout

FINDING_GROUPS = {
    "no finding": {"normal", "no finding"},
    "heart, fluid": {
        *("cardiomegaly", "enlarged cardiomediastinum", "edema", "pleural effusion", "effusion", "fissure"),
        *("pulmonary hypertension", "tortuous aorta", "calcification of the aorta", "hydropneumothorax"),
    },
    "opacity, infection": {
        *("lung opacity", "pneumonia", "consolidation", "infiltration", "atelectasis", "lobar atelectasis"),
        *("tuberculosis", "infarction", "round(ed) atelectasis"),
    },
    "air": {"pneumothorax", "subcutaneous emphysema", "pneumomediastinum", "pneumoperitoneum", "emphysema"},
    "nodule, mass, scar": {
        *("nodule", "mass", "lung lesion", "granuloma", "fibrosis", "adenopathy"),
        *("pleural thickening", "pleural other"),
    },
    "bone": {"fracture", "rib fracture", "clavicle fracture", "kyphosis"},
    "device only": {"support devices"},
}
"""What an image mainly shows, for the colours of the t-SNE map."""


def score_plot(metrics: Metrics, arms: Sequence[str]) -> Figure:
    """Macro AUC of each arm with its interval over patients; small dots are the single runs."""
    figure, axes = _rows_of_arms(arms, metrics)
    for ax, group in zip(axes, GROUPS):
        for y, arm in enumerate(arms):
            score = metrics.arms[arm].auc[group]
            _dots(ax, [run.value for run in score.runs], y)
            _point(ax, score.value, score.low, score.high, y, arm)
        ax.axvline(0.5, color="black", lw=0.8, ls=":")
        ax.set_xlabel("macro AUC")
    return figure


def difference_plot(metrics: Metrics, arms: Sequence[str], reference: str) -> Figure:
    """Difference of each arm to the reference, with the verdict's interval; small dots are the single runs."""
    found = {c.a: c.auc for c in metrics.comparisons if c.b == reference}
    arms = [arm for arm in arms if arm in found]
    figure, axes = _rows_of_arms(arms, metrics)
    for ax, group in zip(axes, GROUPS):
        for y, arm in enumerate(arms):
            difference = found[arm][group]
            if difference is not None:
                _dots(ax, [100 * run.value for run in difference.runs], y)
                verdict = difference.verdict
                _point(ax, 100 * difference.value, 100 * verdict.low, 100 * verdict.high, y, arm)
        ax.axvline(0, color="black", lw=0.8)
        ax.set_xlabel("difference in AUC, points")
    return figure


def _rows_of_arms(arms: Sequence[str], metrics: Metrics) -> tuple[Figure, list[Axes]]:
    """A panel for each group, a row for each arm."""
    figure = Figure(figsize=(10, 1.1 + 0.38 * len(arms)), layout="constrained")
    axes = list(figure.subplots(1, 3, sharey=True))
    for ax, group in zip(axes, GROUPS):
        ax.set_title(GROUP_TITLES[group], fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.grid(axis="x", color="0.9")
        ax.set_axisbelow(True)
        _bare(ax)
    axes[0].set_yticks(range(len(arms)), [metrics.arms[arm].title for arm in arms])
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return figure, axes


def _dots(ax: Axes, values: list[float], y: float) -> None:
    known = [value for value in values if np.isfinite(value)]
    if len(known) > 1:
        ax.plot(known, np.full(len(known), y + 0.22), ".", color="0.6", ms=3.5, zorder=1)


def _point(ax: Axes, value: float, low: float, high: float, y: float, arm: str) -> None:
    """A value with its interval; matplotlib leaves out what is nan."""
    ax.plot([low, high], [y, y], color="0.2", lw=1.4, zorder=2)
    ax.plot(value, y, ms=7, mec="black", mew=0.7, ls="", zorder=3, **STYLES.get(arm, OTHER_STYLE))


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def class_auc_plot(metrics: Metrics, arms: Sequence[str]) -> Figure:
    """AUC of every finding, the most frequent one at the top, with DeLong's intervals; bars grow from chance, 0.5."""
    findings = metrics.cohort.findings
    figure = Figure(figsize=(8.5, 1.4 + len(findings) * (0.14 + 0.085 * len(arms))), layout="constrained")
    ax = figure.subplots()
    height = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        scores = [(row, metrics.arms[arm].classes[finding.name]) for row, finding in enumerate(findings)]
        known = [(row, score) for row, score in scores if score is not None]
        y = np.array([row for row, _ in known]) + (i - (len(arms) - 1) / 2) * height
        value, low, high = np.array([(score.value, score.low, score.high) for _, score in known]).reshape(-1, 3).T
        color = STYLES.get(arm, OTHER_STYLE)["color"]
        title = metrics.arms[arm].title
        ax.barh(y, value - 0.5, height, left=0.5, color=color, ec="black", lw=0.3, label=title)
        ax.hlines(y, low, high, color="white", lw=2.4)  # an outline, for the part that lies on the bar
        ax.hlines(y, low, high, color="black", lw=0.9)
    ax.axvline(0.5, color="black", lw=0.8)
    names = [f"{f.name}{' (rare)' if f.rare else ''}  {f.test:.0f}" for f in findings]
    ax.set_yticks(range(len(findings)), names, fontsize=8.5)
    for row, finding in enumerate(findings):
        if finding.rare:
            ax.axhspan(row - 0.5, row + 0.5, color="0.94", zorder=0)
    ax.set(ylim=(len(findings) - 0.4, -0.6), xlabel="AUC", title="finding, positive test images")
    ax.title.set(fontsize=9, ha="right", position=(0, 1))
    ax.grid(axis="x", color="0.88")
    ax.set_axisbelow(True)
    _bare(ax)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def embedding_map(results: Sequence[Result], *, seed: int = 0) -> Figure:
    """t-SNE of the test images' embeddings, a panel for each result of one run (the paper's Figure 2).

    Every panel shows the same images, coloured by what an image mainly shows: the group of its rarest finding. Under
    each panel, from the embeddings themselves: how often neighbours share the group, see `neighbour_agreement`.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(results[0].rows))[:TSNE_IMAGES])
    groups = image_groups(results[0])[rows]
    present = [i for i in range(len(FINDING_GROUPS) + 1) if (groups == i).any()]
    titles = [*FINDING_GROUPS, "other"]
    colors = ["#c9c9c9", "#1f5fbf", "#e0a100", "#111111", "#c2185b", "#00897b", "#8e6bbf", "#7a4b2a"]
    markers = [".", "o", "s", "^", "D", "P", "v", "x"]
    figure = Figure(figsize=(max(5.0, 4.2 * len(results)), 5.4), layout="constrained")
    for ax, result in zip(np.atleast_1d(figure.subplots(1, len(results))), results):
        xy = tsne(result.embeddings[rows], seed)
        for i in present:
            here = xy[groups == i]
            size = 26 if markers[i] == "." else 13
            ax.scatter(*here.T, s=size, c=colors[i], marker=markers[i], lw=0.8 if markers[i] == "x" else 0, alpha=0.75)
        agreement, half, chance = neighbour_agreement(result.embeddings[rows], groups, result.patients[rows])
        ax.set_title(ARMS[result.arm].title if result.arm in ARMS else result.arm, fontsize=10)
        ax.set_xlabel(f"neighbours of the same group: {agreement:.1%} ± {half:.1%}\n(by chance {chance:.1%})")
        ax.set(xticks=[], yticks=[])
    handles = [
        figure.axes[0].scatter(
            [], [], s=34, c=colors[i], marker=markers[i], label=f"{titles[i]} ({(groups == i).sum()})"
        )
        for i in present
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, 1 + len(results)), frameon=False)
    return figure


def tsne(embeddings: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float64]:
    """(n, d) → (n, 2)."""
    if len(embeddings) < 3:
        return np.zeros((len(embeddings), 2))
    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    logging.getLogger("openTSNE").setLevel(logging.ERROR)  # it tells everybody how it begins
    model = TSNE(perplexity=perplexity, metric="cosine", initialization="pca", random_state=seed, n_jobs=1)
    return np.asarray(model.fit(embeddings))


def image_groups(result: Result) -> npt.NDArray[np.intp]:
    """(n,) number of the group in `FINDING_GROUPS` of each image's rarest finding; the last for an unknown finding.

    Devices count only where there is nothing else, and an image without findings is one of "no finding".
    """
    names = [name.lower().replace("_", " ") for name in result.label_names]
    group = [next((i for i, g in enumerate(FINDING_GROUPS.values()) if n in g), len(FINDING_GROUPS)) for n in names]
    frequency = (result.labels.sum(axis=0) + result.train_counts).astype(np.float64)
    frequency[[g == list(FINDING_GROUPS).index("device only") for g in group]] += frequency.sum() + 1
    rarest = np.where(result.labels, frequency, np.inf).argmin(axis=1)
    return np.where(result.labels.any(axis=1), np.array(group)[rarest], 0)


def neighbour_agreement(
    embeddings: npt.NDArray[np.float32], groups: npt.NDArray[np.intp], patients: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """How often an image's nearest neighbours from other patients are of its own group.

    Returns:
        The share, half of its 95 % interval (over patients), and the share of random neighbours.
    """
    similarity = embeddings @ embeddings.T
    other = patients[:, None] != patients
    similarity[~other] = -np.inf
    nearest = np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]
    usable = np.take_along_axis(other, nearest, axis=1)
    same = groups[nearest] == groups[:, None]
    agreement = (same & usable).sum(axis=1) / np.maximum(usable.sum(axis=1), 1)
    chance = (groups[:, None] == groups)[other].mean() if other.any() else np.nan
    _, patient = np.unique(patients, return_inverse=True)
    deviation = np.bincount(patient, agreement - agreement.mean())
    return float(agreement.mean()), float(1.96 * np.sqrt((deviation**2).sum()) / len(agreement)), float(chance)


def enrichment_map(result: Result) -> Figure:
    """Lift of each finding in each cluster of the test images: how many times as often there as in all images.

    Shrunk towards 1 by `PSEUDO_IMAGES`, so a cell far from 1 rests on several images.
    """
    clusters, sizes = np.unique(result.clusters, return_counts=True)
    findings = np.flatnonzero(result.labels.any(axis=0))
    findings = findings[np.argsort(-result.labels[:, findings].sum(axis=0), kind="stable")]
    prevalence = result.labels[:, findings].mean(axis=0)
    positives = np.stack([result.labels[result.clusters == k][:, findings].sum(axis=0) for k in clusters])
    expected = sizes[:, None] * prevalence
    lift = np.log2((positives + PSEUDO_IMAGES) / (expected + PSEUDO_IMAGES))
    order = np.lexsort((-lift.max(axis=1), lift.argmax(axis=1)))  # clusters of the same finding side by side
    figure = Figure(figsize=(2.8 + 0.21 * len(clusters), 1.6 + 0.19 * len(findings)), layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(lift[order].T, cmap="cividis", vmin=-2, vmax=2, aspect="auto")
    names = [f"{result.label_names[i]}  {result.labels[:, i].sum()}" for i in findings]
    ax.set_yticks(range(len(findings)), names, fontsize=8)
    ax.set_xticks(range(len(clusters)), sizes[order], fontsize=7, rotation=90)
    ax.set_xlabel("cluster, by its number of test images")
    ax.set_ylabel("finding, positive test images")
    bar = figure.colorbar(picture, ax=ax, ticks=[-2, -1, 0, 1, 2], shrink=0.6, extend="both")
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"])
    bar.set_label("times as frequent as in all images")
    return figure


CURVES = {
    "objective": "objective, training",
    "validation": "objective, validation",
    "metric": "metric loss",
    "learning_rate": "learning rate",
}
NOT_CURVES = ("epoch", "seconds")


def training_curves(results: Sequence[Result], arms: Sequence[str]) -> Figure:
    """Losses and cluster statistics by epoch, the mean over runs in a band from the smallest to the largest.

    A learning rate that stays what it is has no panel.
    """
    results = [result for result in results if result.arm in arms and result.history]
    logged = dict.fromkeys(key for result in results for entry in result.history for key in entry)
    if len({entry.get("learning_rate") for result in results for entry in result.history}) == 1:
        logged.pop("learning_rate", None)
    keys = [
        key for key in (*CURVES, *(k for k in logged if k not in CURVES)) if key in logged and key not in NOT_CURVES
    ]
    columns = min(3, len(keys))
    figure = Figure(figsize=(3.6 * columns, 2.7 * -(-len(keys) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(keys) // columns), columns, squeeze=False).ravel()
    for ax in axes[len(keys) :]:
        ax.remove()
    for ax, key in zip(axes, keys):
        for arm in arms:
            runs = [[entry.get(key, np.nan) for entry in r.history] for r in results if r.arm == arm]
            if not any(np.isfinite(run).any() for run in runs) or (key == "metric" and not np.any(runs[0])):
                continue
            curves = np.array([run[: min(map(len, runs))] for run in runs], dtype=np.float64)
            epochs = np.arange(1, curves.shape[1] + 1)
            style = STYLES.get(arm, OTHER_STYLE)
            ax.plot(epochs, curves.mean(axis=0), lw=1.4, ms=4, label=ARMS[arm].title if arm in ARMS else arm, **style)
            ax.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=style["color"], alpha=0.2, lw=0)
        ax.set_title(CURVES.get(key, key.replace("_", " ")), fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.grid(color="0.92")
        _bare(ax)
    handles = {label: handle for ax in axes[: len(keys)] for handle, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure


ABLATIONS = {"dof": "degrees of freedom ν", "batch_size": "batch size", "n_components": "number of components N"}


def ablation_plot(metrics: Metrics, config: Mapping[str, Any]) -> Figure:
    """Macro AUC of the CXR-CML arm as one setting changes; the middle setting is the configuration's."""
    series = {field: points for field in ABLATIONS if len(points := ablation_points(metrics, config, field)) > 1}
    figure = Figure(figsize=(3.4 * len(series), 3.4), layout="constrained")
    for ax, (field, points) in zip(figure.subplots(1, len(series), sharey=True, squeeze=False)[0], series.items()):
        for group, style, shift in (("total", "o-", -0.08), ("base", "s--", 0.0), ("rare", "^:", 0.08)):
            scores = [metrics.arms[arm].auc[group] for _, arm in points]
            x = np.arange(len(scores)) + shift
            value, low, high = np.array([(score.value, score.low, score.high) for score in scores]).T
            color = {"total": "#111111", "base": "#6fa8dc", "rare": "#c46d1b"}[group]
            ax.vlines(x, low, high, color=color, lw=1.2)
            ax.plot(x, value, style, color=color, ms=5, lw=1.2, label=GROUP_TITLES[group])
        ax.set_xticks(range(len(points)), ["∞" if np.isinf(v) else f"{v:g}" for v, _ in points])
        ax.set_xlabel(ABLATIONS[field])
        ax.grid(axis="y", color="0.92")
        _bare(ax)
    figure.axes[0].set_ylabel("macro AUC")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def ablation_points(metrics: Metrics, config: Mapping[str, Any], field: str) -> list[tuple[float, str]]:
    """(setting, arm) of the arms that vary one setting of CXR-CML, and of CXR-CML itself, in order of the setting."""
    varied = [(getattr(ARMS[arm], field), arm) for arm in ABLATION if arm in metrics.arms]
    points = [(float(value), arm) for value, arm in varied if value is not None]
    if points and "cxr-cml" in metrics.arms and config.get(field) is not None:
        points.append((float(config[field]), "cxr-cml"))
    return sorted(points)
