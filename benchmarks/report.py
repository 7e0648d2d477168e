"""`RESULTS.md`: tables, a plot, and what they were measured on."""

from __future__ import annotations

import datetime
import math
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapters import ADAPTERS
from benchmarks.problems import Shape
from benchmarks.training import FEATURES

# A run has converged to another's log-likelihood when it is within this, in nats per row.
WITHIN = 0.05

Results = dict[str, dict[str, Any]]
"""Outcomes by library."""


@dataclass(frozen=True)
class Outcome:
    """Everything that one run of the command measured."""

    commit: str
    command: str
    peaks: dict[str, Any]
    speeds: dict[tuple[Shape, str], Results]
    convergences: dict[str, Results]
    structures: tuple[Shape, Results]
    in_training: tuple[int, dict[str, Any]]
    stage: tuple[int, dict[str, Any]]


def write(outcome: Outcome, path: Path) -> None:
    """Write the report, and its plot beside it."""
    plot = path.with_suffix(".png")
    _draw(outcome.speeds, plot)
    sections = [
        "# Speed and memory beside other libraries",
        f"Written by `{outcome.command}`; do not edit. Commit {outcome.commit}, {datetime.date.today().isoformat()}.",
        _machine(),
        f"![Seconds per iteration]({plot.name})",
        "## Time per iteration, and memory",
        SPEED_NOTES,
        *(_speed_table(shape, covariance, rows) for (shape, covariance), rows in outcome.speeds.items()),
        "## Against what the machine can do",
        _roofline(outcome.peaks, outcome.speeds),
        "## Iterations to the same log-likelihood",
        CONVERGENCE_NOTES,
        *(_convergence_table(name, rows) for name, rows in outcome.convergences.items()),
        "## Structures of the scales",
        _structure_table(*outcome.structures),
        "## In training",
        _training(outcome.in_training, outcome.stage, outcome.peaks),
    ]
    path.write_text("\n\n".join(sections) + "\n")


SPEED_NOTES = """\
Each library in a process of its own, on the same float32 data (clusters on the unit sphere in the manner of CLIP's
embeddings, `problems.py`), from the same means, equal weights and the same isotropic scales; torchgmm takes its first
scales from the means alone. ν = 4 is fixed. The regularization is 1e-6 of the data's mean variance, and 1e-2 of it for
full scales in 128 or more features.

- s/iteration: (time of 1 + n iterations − time of 1 iteration)/n, so that imports, conversions and the start drop out;
  the median of five, or of as many as fit into 40 s.
- of ours: that time over that of tmixture's Student-t mixture.
- extra: the highest resident memory while fitting, less that before (libraries and float32 data); peak: all of it.
- log-likelihood: mean per row after the first M-step. Laws with the same start agree where the libraries do. At 512
  features two of 40 components are left with next to no rows: tmixture starts them anew, and credits components of few
  rows with more of the regularization; others keep them as spikes, which have the higher likelihood."""

CONVERGENCE_NOTES = f"""\
The number of M-steps until the mean log-likelihood per row is within {WITHIN} of where the first row's run ends, and
the seconds that so many take; the Student-t laws only, from the same start."""


def installed_version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The name of the processor."""
    return _cpu_info("model name") or platform.processor() or "an unknown processor"


def _cpu_info(field: str) -> str:
    """A field of what Linux tells of the processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(field)), "")


def _machine() -> str:
    vector = " ".join(flag for flag in _cpu_info("flags").split() if flag.startswith(("avx", "fma", "amx")))
    packages = {adapter.package for adapter in ADAPTERS.values()} | {"torch", "numpy", "transformers"}
    versions = ", ".join(
        f"{package} {number}" for package in sorted(packages) if (number := installed_version(package))
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    gpu = f" GPU: {torch.cuda.get_device_name()}." if torch.cuda.is_available() else ""
    return f"Machine: {processor()}, {os.cpu_count()} CPUs ({vector}), {memory:.0f} GiB.{gpu}\n\nVersions: {versions}."


def _speed_table(shape: Shape, covariance: str, rows: Results) -> str:
    ours = rows["tmixture"].get("seconds")
    lines = [
        f"### N = {shape.rows}, d = {shape.features}, K = {shape.components}, {covariance}",
        "",
        "| library | law | s/iteration | of ours | extra MB | peak MB | log-likelihood |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        cells = [f"{name}", ADAPTERS[name].law]
        if "failure" in row:
            lines.append(f"| {' | '.join(cells)} | {row['failure']} | | | | |")
            continue
        ratio = "" if ours is None else f"{row['seconds'] / ours:.1f}×"
        cells += [f"{row['seconds']:.4g}", ratio, f"{row['extra'] / 1e6:.0f}", f"{row['peak'] / 1e6:.0f}"]
        cells.append("" if row["log_likelihood"] is None else f"{row['log_likelihood']:.4f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _roofline(peaks: dict[str, Any], speeds: dict[tuple[Shape, str], Results]) -> str:
    """The time that dense EM needs at the measured peaks, beside ours."""
    if "failure" in peaks:
        return str(peaks["failure"])
    lines = [
        f"Measured peaks: matrix products {peaks['float32']:.0f} GFLOP/s in float32 and {peaks['float64']:.0f} in "
        f"float64; copies {peaks['copy']:.1f} GB/s (read and written).",
        "",
        "EM as it is written takes 4·N·K·d flops for the distances of diag and 2·N·K·d² for those of full, and as many",
        "for the moments. The bound is the larger of the times for these flops at the float32 peak and for reading the",
        "data twice. tmixture may go below it: it takes the moments of a component over the rows that have a share in",
        "it, and with full scales completes no distance that cannot matter.",
        "",
        "| problem | flops | bytes | bound s | tmixture s | of the bound |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (shape, covariance), rows in speeds.items():
        N, d, K = shape.rows, shape.features, shape.components
        flops = 8 * N * K * d if covariance == "diag" else 4 * N * K * d * d
        size = 2 * 4 * N * d
        bound = max(flops / peaks["float32"], size / peaks["copy"]) / 1e9
        ours = rows["tmixture"].get("seconds")
        measured = " | " if ours is None else f"{ours:.4g} | {ours / bound:.2f}×"
        lines.append(f"| {shape} {covariance} | {flops:.2g} | {size:.2g} | {bound:.3g} | {measured} |")
    return "\n".join(lines)


def _convergence_table(name: str, rows: Results) -> str:
    lines = [f"### {name}", "", "| update | iterations | seconds | last log-likelihood |", "|---|---:|---:|---:|"]
    target = rows["tmixture"].get("history", [float("inf")])[-1] - WITHIN
    for update, row in rows.items():
        if "failure" in row:
            lines.append(f"| {update} | {row['failure']} | | |")
            continue
        history = row["history"]
        reached = next((index for index, value in enumerate(history) if value >= target), None)
        iterations = f"not within {len(history) - 1}" if reached is None else str(reached)
        share = 1.0 if reached is None else (reached + 1) / len(history)
        lines.append(f"| {update} | {iterations} | {row['seconds'] * share:.3g} | {history[-1]:.3f} |")
    return "\n".join(lines)


def _structure_table(shape: Shape, rows: Results) -> str:
    diag = rows["diag"].get("seconds")
    lines = [
        f"Ours on embeddings as above, {shape}, a fifth of them held out, from given means; the default",
        "regularization, and 1e-2 of the data's mean variance for full.",
        "",
        "| structure | parameters | iterations | s/iteration | of diag | log-likelihood | held out |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        if "failure" in row:
            lines.append(f"| {name} | {row['failure']} | | | | | |")
            continue
        ratio = "" if diag is None else f"{row['seconds'] / diag:.1f}×"
        lines.append(
            f"| {name} | {row['parameters']} | {row['iterations']} | {row['seconds']:.3g} | {ratio} "
            f"| {row['log_likelihood']:.1f} | {row['held_out']:.1f} |"
        )
    return "\n".join(lines)


def _training(small: tuple[int, dict[str, Any]], large: tuple[int, dict[str, Any]], peaks: dict[str, Any]) -> str:
    (batch, beside), (large_batch, alone) = small, large
    lines = [
        "The cluster stage is one call of `ClusterTripletLoss` in train mode with its defaults (K = 40, 512 features):",
        "checks, a tenth of a refit of the mixture to the last 1,024 rows, the labels, the mining of semi-hard",
        "triplets, the mean of their losses, and the gradient in the embeddings. Not included: all triplets",
        "(`miner=None`), of which there are O(B³).",
        "The step is one of a randomly initialised ViT-B/32 CLIP: forward, backward and AdamW in float32.",
        "",
        "The bound is the time of the products of embeddings alone at the measured peak, 8·B²·d flops: the distances",
        "of the miner and of the loss, and the two products of their gradient. One matrix of distances for both, and",
        "one product for a gradient in which both sides are the same rows, would take half of that.",
        "",
        "| batch | cluster stage ms | bound ms | CLIP step ms | share | triplets |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for size, row in ((batch, beside), (large_batch, alone)):
        if "failure" in row:
            lines.append(f"| {size} | {row['failure']} | | | | |")
            continue
        bound = f"{8 * size**2 * FEATURES / peaks['float32'] / 1e6:.3g}" if "float32" in peaks else ""
        step = row.get("step")
        share = " | " if step is None else f"{1e3 * step:.0f} | {row['stage'] / step:.2%}"
        lines.append(f"| {size} | {1e3 * row['stage']:.1f} | {bound} | {share} | {row['triplets']:.0f} |")
    return "\n".join(lines)


def _draw(speeds: dict[tuple[Shape, str], Results], path: Path) -> None:
    """Seconds per iteration on a logarithmic axis: a row of panels for each structure, a panel for each shape."""
    from matplotlib.figure import Figure

    covariances = list(dict.fromkeys(covariance for _, covariance in speeds))
    shapes = list(dict.fromkeys(shape for shape, _ in speeds))
    size = (3.2 + 2.6 * len(shapes), 0.8 + 3.2 * len(covariances))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(covariances), len(shapes), sharey="row", squeeze=False)
    for (shape, covariance), rows in speeds.items():
        axis = axes[covariances.index(covariance), shapes.index(shape)]
        for place, (name, row) in enumerate(rows.items()):
            if "seconds" in row:
                ours = name.startswith("tmixture")
                axis.plot(row["seconds"], place, "D" if ours else "o", color="tab:orange" if ours else "tab:blue")
            else:
                axis.text(
                    0.5,
                    place,
                    "no result",
                    transform=axis.get_yaxis_transform(),
                    color="gray",
                    ha="center",
                    va="center",
                )
        axis.set(xscale="log", title=f"{shape} {covariance}", ylim=(len(rows) - 0.5, -0.5))
        axis.set_yticks(range(len(rows)), list(rows))
        low, high = axis.get_xlim()
        axis.set_xlim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
        axis.grid(axis="both", alpha=0.3)
    figure.supxlabel("seconds per iteration", fontsize="medium")
    figure.savefig(path, dpi=110)
