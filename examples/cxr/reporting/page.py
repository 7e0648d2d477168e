"""The report of an experiment: one HTML page with everything in it, beside it `metrics.json` and the figures."""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import jinja2
from matplotlib.figure import Figure

from cxr.reporting import figures
from cxr.reporting.evaluation import KEY_PAIRS
from cxr.reporting.metrics import GROUPS, Metrics, ScoreDifference, plain
from cxr.reporting.paper import PAPER, PAPER_ROWS
from cxr.reporting.results import Result
from cxr.training.arms import ABLATION, ARMS, MAIN, TABLE2, VARIANTS

FOLDER = Path(__file__).parent
PACKAGES = ("tmixture", "torch", "transformers", "open_clip_torch", "pytorch-metric-learning", "numpy", "scikit-learn")
DPI = 130
QUESTIONS = {
    ("meta", "start"): "Does training on meta labels help?",
    ("cxr-cml", "meta"): "Does CXR-CML beat training on meta labels alone? (the paper's claim)",
    ("cxr-cml", "meta-frequency"): "Does CXR-CML beat weights from the label frequencies, which need no clusters?",
    ("cxr-cml-frequency", "meta-frequency"): "Does CXR-CML add anything to those weights?",
}
TESTS = {
    "splits": "corrected t-test over {n} splits",
    "seeds": "paired t-test over {n} seeds",
    "patients": "bootstrap over patients",
}


@dataclass(frozen=True)
class Plate:
    """A figure with its file name, its title and a caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def write_report(
    output: Path,
    metrics: Metrics,
    results: Sequence[Result],
    *,
    config: Mapping[str, Any],
    data_set: str,
    rare_rule: str,
    simulated: bool = False,
    same_as_paper: bool = False,
    sample_images: Path | None = None,
) -> Path:
    """Write `report.html`, `metrics.json` and `figures/*.png` to `output`; each is there whole or not at all.

    Args:
        output: an existing folder.
        metrics: from `cxr.reporting.evaluation.evaluate`.
        results: what `metrics` was made from.
        config: the settings, from `cxr.reporting.results.describe`.
        data_set: what the images are, in words.
        rare_rule: what makes a finding rare, in words.
        simulated: whether they are no patients'.
        same_as_paper: the data are MIMIC-CXR-JPG with the CXR-LT 2024 labels; otherwise the paper's numbers are marked
            as those of another data set.
        sample_images: a picture of some images, to be shown. Only for images that may be passed on.

    Returns:
        The path of the page.
    """
    run = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "data_set": data_set,
        "rare_rule": rare_rule,
        "simulated": simulated,
        "same_as_paper": same_as_paper,
        "commit": commit(),
        "versions": versions(),
        "config": {name: str(v) if v in (math.inf, -math.inf) else v for name, v in config.items()},  # JSON has no ∞
    }
    plates = make_plates(metrics, results, config)
    pictures = {plate.name: _png(plate.figure) for plate in plates}
    if sample_images is not None:
        pictures["sample-images"] = sample_images.read_bytes()
    page = render(run, metrics, plates, pictures)
    _write(
        output / "metrics.json",
        json.dumps({"run": run, **plain(metrics), "paper": PAPER}, indent=1, default=str).encode(),
    )
    for name, picture in pictures.items():
        _write(output / "figures" / f"{name}.png", picture)
    _write(output / "report.html", page.encode())
    return output / "report.html"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def commit() -> str | None:
    """The commit of this file's repository, with a + when files differ from it; None without git."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", FOLDER, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changes else "")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide about the numbers, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# ------------------------------------------------------------------ figures


def make_plates(metrics: Metrics, results: Sequence[Result], config: Mapping[str, Any]) -> list[Plate]:
    """The figures that the results allow, in the page's order."""
    arms = list(metrics.arms)
    main = [arm for arm in arms if arm in MAIN or arm in TABLE2] or arms
    reference = metrics.reference
    plates = [
        Plate(
            "scores",
            "Zero-shot AUC of the arms",
            "Mean AUC over the findings of each group. Lines: 95 % interval, from resampled patients. Small grey dots: "
            "the single runs. Dotted: chance.",
            figures.score_plot(metrics, main),
        )
    ]
    compared = [arm for arm in arms if arm not in ABLATION]
    if reference is not None and any(c.a in compared and c.b == reference for c in metrics.comparisons):
        title = metrics.arms[reference].title
        plates.append(
            Plate(
                "differences",
                f"Difference to “{title}”",
                f"Right of zero: better than “{title}” on the same test images. Lines: 95 % interval of the test named "
                "in the table of differences. Small grey dots: the single runs.",
                figures.difference_plot(metrics, compared, reference),
            )
        )
    shown = [arm for arm in ("start", "meta", "meta-frequency", "cxr-cml") if arm in arms] or arms[:4]
    plates.append(
        Plate(
            "findings",
            "AUC of every finding",
            "From the most frequent finding down to the rarest, with the number of test images that show it (mean over "
            "runs); rare findings on grey. Bars grow from 0.5, which is chance. Lines: 95 % interval of DeLong. With "
            "a handful of positive images the intervals are wide, and one finding alone proves little.",
            figures.class_auc_plot(metrics, shown),
        )
    )
    plates += _plates_of_one_run(results)
    if any(result.history and result.arm in main for result in results):
        plates.append(
            Plate(
                "training",
                "Training curves",
                "Means over runs by epoch; bands reach from the smallest to the largest run. The training loss of arms "
                "with sample weights is a weighted one, the validation loss is without weights. Arms of another "
                "objective than CLIP’s have losses that cannot be compared.",
                figures.training_curves(results, main),
            )
        )
    if any(len(figures.ablation_points(metrics, config, field)) > 1 for field in figures.ABLATIONS):
        plates.append(
            Plate(
                "ablation",
                "CXR-CML with other settings",
                "Mean AUC as one setting changes and the others stay. Lines: 95 % interval, from resampled patients.",
                figures.ablation_plot(metrics, config),
            )
        )
    return plates


def _plates_of_one_run(results: Sequence[Result]) -> list[Plate]:
    """Maps of the embeddings and of the clusters, for the first of the runs with the most arms."""
    counts = Counter((result.seed, result.fold) for result in results)
    seed, fold = min(counts, key=lambda key: (-counts[key], key))
    run = {result.arm: result for result in results if (result.seed, result.fold) == (seed, fold)}
    where = f"Seed {seed}, fold {fold}."
    mapped = [run[arm] for arm in ("start", "meta", "cxr-cml") if arm in run] or list(run.values())[:3]
    plates = [
        Plate(
            "embeddings",
            "The test images as the models see them (t-SNE)",
            f"{where} Each mark is a test image; close marks have similar embeddings. The colour is the group of the "
            "image's rarest finding. Distances between far islands mean nothing. The numbers below are measured in "
            f"the embeddings and not on the map: how many of the {figures.NEIGHBOURS} nearest images of other "
            "patients belong to the same group, ± half of the 95 % interval over patients.",
            figures.embedding_map(mapped),
        )
    ]
    clustered = next((run[arm] for arm in ("cxr-cml", *run) if arm in run and (run[arm].clusters >= 0).any()), None)
    if clustered is not None:
        title = ARMS[clustered.arm].title if clustered.arm in ARMS else clustered.arm
        plates.append(
            Plate(
                "clusters",
                "Which findings the clusters hold",
                f"{where} Arm “{title}”. Columns: clusters of the mixture; rows: findings, the most frequent at the "
                "top. Bright: the finding is more frequent in this cluster than in all test images; dark: rarer; the "
                "middle tone: as everywhere, or too few images to tell. A cluster that is bright in related findings "
                "has found a disease; columns without bright cells split the images by something else, such as "
                "exposure.",
                figures.enrichment_map(clustered),
            )
        )
    return plates


# ------------------------------------------------------------------ page


def render(run: dict[str, Any], metrics: Metrics, plates: Sequence[Plate], pictures: Mapping[str, bytes]) -> str:
    """The page as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "auc": auc,
        "points": points,
        "p": p_value,
        "p_of": p_of,
        "count": count,
        "span": span,
        "quantity": quantity,
    }
    environment.tests["known"] = known
    arms = metrics.arms
    main = [arm for arm in arms if arm not in VARIANTS and arm not in ABLATION]
    return environment.get_template("report.html.jinja").render(
        run=run,
        metrics=metrics,
        paper=PAPER,
        paper_rows=PAPER_ROWS,
        groups=GROUPS,
        group_titles=figures.GROUP_TITLES,
        shown_rows=[PAPER_ROWS[arm] for arm in main if arm in PAPER_ROWS],
        main=main,
        variants=[arm for arm in arms if arm in VARIANTS],
        ablation=ablation_rows(metrics, run["config"]),
        comparisons={(c.a, c.b): c for c in metrics.comparisons},
        asked_for=[(c.a, c.b) for c in metrics.comparisons if c.a in ARMS and c.b in ARMS[c.a].compared_with],
        costs=[arm for arm in arms if arms[arm].cost],
        answers=answers(metrics),
        key_pairs=[(c.a, c.b) for c in metrics.comparisons if (c.a, c.b) in KEY_PAIRS],
        finding_counts=finding_counts(metrics),
        upside_down=upside_down(metrics),
        incomplete=[arm for arm in arms if arms[arm].n_runs < len(metrics.runs)],
        simulated=run["simulated"],
        plates={plate.name: plate for plate in plates},
        pictures={name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
        method=method,
        wins=wins,
    )


def answers(metrics: Metrics) -> list[dict[str, Any]]:
    """What a reader wants to know, each question with the differences that answer it, rare findings first."""
    found = {(c.a, c.b): c.auc for c in metrics.comparisons}
    return [
        {
            "question": question,
            "a": metrics.arms[pair[0]].title,
            "b": metrics.arms[pair[1]].title,
            "lines": [
                {"group": group, "difference": difference, "reading": reading(difference)}
                for group in ("rare", "total")
                if (difference := found[pair][group]) is not None
            ],
        }
        for pair, question in QUESTIONS.items()
        if pair in found
    ]


def reading(difference: ScoreDifference) -> str:
    """A difference in words: shown only when p is below 0.05 and the interval excludes zero, in more than one run.

    What differs between two models of one run, differs by chance of the training as well as by method.
    """
    verdict = difference.verdict
    if len(difference.runs) < 2:
        return "cannot be told from one run"
    if not verdict.p < 0.05 or verdict.low <= 0 <= verdict.high:
        return "no difference shown"
    return "a gain" if verdict.low > 0 else "a loss"


def method(difference: ScoreDifference) -> str:
    """The test behind a verdict, in words."""
    test = difference.verdict.test
    return TESTS[test].format(n=getattr(difference.tested(test), "n", None))


def wins(difference: ScoreDifference) -> str:
    """In how many seeds and folds a was better than b; empty for a single run."""
    by_seed: dict[int, list[float]] = {}
    for run in difference.runs:
        by_seed.setdefault(run.seed, []).append(run.value)
    seeds = [sum(folds) / len(folds) for folds in by_seed.values()]
    runs = [value for folds in by_seed.values() for value in folds]
    texts = []
    if len(seeds) > 1:
        texts.append(f"{sum(value > 0 for value in seeds)}/{len(seeds)} seeds")
    if len(runs) > len(seeds):
        texts.append(f"{sum(value > 0 for value in runs)}/{len(runs)} {'folds' if len(seeds) == 1 else 'runs'}")
    return ", ".join(texts)


def finding_counts(metrics: Metrics) -> dict[tuple[str, str], dict[str, float]]:
    """For the key pairs: single findings with a gain or a loss at p < 0.05, and how many chance alone would give."""
    counts = {}
    for comparison in metrics.comparisons:
        if comparison.classes is not None:
            tested = [d for d in comparison.classes.values() if d is not None and not math.isnan(d.p)]
            sure = [d for d in tested if d.p < 0.05]
            counts[comparison.a, comparison.b] = {
                "tested": len(tested),
                "gains": sum(d.value > 0 for d in sure),
                "losses": sum(d.value < 0 for d in sure),
                "chance": 0.05 * len(tested),
            }
    return counts


def upside_down(metrics: Metrics) -> dict[str, list[str]]:
    """The findings of each arm that it ranks the wrong way round: their interval lies below one half."""
    wrong = {
        arm: [name for name, score in values.classes.items() if score is not None and score.high < 0.5]
        for arm, values in metrics.arms.items()
    }
    return {arm: names for arm, names in wrong.items() if names}


def ablation_rows(metrics: Metrics, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of Table 3: what is set to what, the arm, and the paper's numbers for it."""
    names = {"dof": "ν = {}", "batch_size": "batch size {}", "n_components": "N = {}"}
    rows = []
    for field, name in names.items():
        points = figures.ablation_points(metrics, config, field)
        for value, arm in points if len(points) > 1 else []:
            label = name.format("∞" if value == float("inf") else f"{value:g}")
            rows.append({"label": label, "arm": arm, "paper": PAPER["table3"].get(label)})
    return rows


def result_table(metrics: Metrics) -> str:
    """Table 2 for a console: the mean AUC of each arm, with its 95 % interval over patients."""
    width = max(len(arm.title) for arm in metrics.arms.values())
    lines = [" " * width + "".join(f"  {figures.GROUP_TITLES[group]:>20}" for group in GROUPS)]
    for arm in metrics.arms.values():
        cells = [f"{auc(s.value)} [{auc(s.low)}, {auc(s.high)}]" for s in (arm.auc[group] for group in GROUPS)]
        lines.append(f"{arm.title:<{width}}" + "".join(f"  {cell:>20}" for cell in cells))
    return "\n".join(["Mean zero-shot AUC", *lines])


# ------------------------------------------------------------------ numbers as text


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is such a number."""
    return value is not None and math.isfinite(value)


def auc(value: float | None) -> str:
    """0.7154 → "0.715"."""
    return f"{value:.3f}" if known(value) else "–"


def points(value: float | None) -> str:
    """A difference of 0.0123 in AUC → "+1.2", with a minus sign that is one."""
    if not known(value):
        return "–"
    rounded = round(100 * value, 1) + 0.0  # which turns −0.0 into 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def p_of(difference: ScoreDifference, n_resamples: int) -> str:
    """The p-value of a verdict; at the least that so many resamples can give, it is that or less."""
    verdict, least = difference.verdict, 2 / (1 + n_resamples)
    if verdict.test == "patients" and len(difference.runs) == 1 and verdict.p <= least * 1.01:
        return f"p ≤ {least:.2g}"
    return p_value(verdict.p)


def p_value(value: float | None) -> str:
    """0.0123 → "p = 0.012"."""
    if not known(value):
        return "no p-value"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def count(value: float | None) -> str:
    """12345.6 → "12,346"."""
    return f"{value:,.0f}" if known(value) else "–"


def span(values: Iterable[float]) -> str:
    """[792, 841] → "792 to 841", [40, 40] → "40"."""
    values = list(values)
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def quantity(value: float, name: str) -> str:
    """A cost with its unit: seconds, FLOPs or bytes."""
    if name == "seconds_per_step":
        return f"{1000 * value:,.1f} ms"
    return f"{value / 1e9:,.2f} GFLOP" if name == "flops_per_step" else f"{value / 2**20:,.0f} MiB"
