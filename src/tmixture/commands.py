"""What the commands of the command line do; `cli` has their arguments."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tmixture import files, shards
from tmixture.chunks import Chunks, chunk_size
from tmixture.diagnostics import ConvergenceWarning
from tmixture.mixture import StudentTMixture
from tmixture.shards import CLUSTERS, Shards

# EM iterations between two checkpoints. Each checkpoint costs two passes over the data.
CHECKPOINT_ITERATIONS = 10
FIELDS = np.dtype([("label", np.int64), ("confidence", np.float32), ("outlier_weight", np.float32)])


# -------------------------------------------------------------------- fit


def fit(arguments: argparse.Namespace) -> None:
    """Fit a mixture, going on from a checkpoint if there is one."""
    output: Path = arguments.output
    checkpoint = output.with_name(output.name + ".checkpoint")
    how = {"normalize": arguments.normalize, "allow_missing": arguments.allow_missing}
    data = Shards(_inputs(arguments), arguments.name, title="fit", **how)
    origin = {"normalize": arguments.normalize, "files": [_stamp(path) for path in data.paths]}
    mixture = StudentTMixture(
        arguments.components,
        data.n_features,
        dof=arguments.dof,
        learn_dof=arguments.learn_dof or False,
        covariance_type=arguments.covariance,
        rank=arguments.rank,
        reg_covar=arguments.reg_covar,
        init=arguments.init,
        n_init=arguments.n_init,
        max_iter=arguments.max_iter,
        tol=arguments.tol,
        background=arguments.background,
        allow_missing=arguments.allow_missing,
        max_candidates=arguments.max_candidates,
        chunk_size=arguments.chunk_size,
        generator=arguments.seed,
        device=_device(arguments.device),
    )
    if arguments.overwrite:
        output.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    for earlier in (checkpoint, output):
        if earlier.exists():
            mixture = _continued(earlier, mixture, origin)
            print(f"tmixture: {earlier} has {mixture.n_iter_} iterations already", file=sys.stderr)
            break
    output.parent.mkdir(parents=True, exist_ok=True)
    while mixture.n_iter_ < mixture.max_iter and not mixture.converged_:
        try:
            _iterate(mixture, data, CHECKPOINT_ITERATIONS)
        finally:
            if mixture.n_iter_:
                mixture.save(checkpoint, origin)
        print(f"iteration {mixture.n_iter_}: mean log-likelihood {mixture.history_[-1]:.6f}", file=sys.stderr)
    if checkpoint.exists():
        os.replace(checkpoint, output)
    if not mixture.converged_:
        print("tmixture: not converged: a larger --max-iter goes on from here", file=sys.stderr)
    print(f"{output}: {mixture}, {_outcome(mixture)}")


def _iterate(mixture: StudentTMixture, data: Shards, n_iter: int) -> None:
    """Go on by at most so many iterations; `max_iter` and the history are those of the whole fit."""
    done, max_iter, history = mixture.n_iter_, mixture.max_iter, mixture.history_
    mixture.max_iter, mixture.warm_start = min(n_iter, max_iter - done), True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(data)
    finally:
        mixture.max_iter, mixture.warm_start = max_iter, False
        if mixture.history_ is not history:
            mixture.n_iter_ += done
            mixture.history_ = history[:-1] + mixture.history_


def _continued(path: Path, wanted: StudentTMixture, origin: dict[str, Any]) -> StudentTMixture:
    """The earlier fit in a file, to be continued by the wanted stopping rule.

    Raises:
        ValueError: it is one of other data or with other settings.
    """
    earlier = StudentTMixture.load(path, device=wanted.means.device)
    was, now = _identity(earlier, files.origin(path)), _identity(wanted, origin)
    for name, value in now.items():
        if was.get(name) != value:
            differing = (
                f"{name}={was.get(name)} and not {value}" if name != "files" else "files that have changed since"
            )
            raise ValueError(f"{path} is of another fit, with {differing}: give another --output, or --overwrite")
    earlier.converged_ = earlier.converged_ and earlier.tol <= wanted.tol
    earlier.max_iter, earlier.tol, earlier.chunk_size = wanted.max_iter, wanted.tol, wanted.chunk_size
    return earlier


def _identity(mixture: StudentTMixture, origin: dict[str, Any]) -> dict[str, Any]:
    """What makes two fits the same but for their length and the memory that they take."""
    free = ("max_iter", "tol", "chunk_size")
    settings = {name: value for name, value in files.encoded(mixture.settings()).items() if name not in free}
    return {**settings, "dof": mixture.initial_dof.tolist(), **origin}


def _stamp(path: Path) -> list[str | int]:
    """What changes when a file does."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


# -------------------------------------------------------------------- predict


def predict(arguments: argparse.Namespace) -> None:
    """Write the clusters of every input next to it; what is there already, and whole, stays."""
    mixture = _load(arguments.mixture, arguments.device)
    inputs = _inputs(arguments)
    outputs = [(arguments.output_dir or path.parent) / f"{path.stem}{CLUSTERS}" for path in inputs]
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            raise ValueError(f"{inputs[outputs.index(output)]} and {inputs[i]} would both be written to {output}")
    # All inputs are looked at before the first is worked on.
    normalize = files.origin(arguments.mixture).get("normalize", False)
    how = {"normalize": normalize, "allow_missing": mixture.allow_missing}
    data = [Shards([path], arguments.name, mixture.n_features, path.name, **how) for path in inputs]
    parameters = [tensor.cpu().numpy().tobytes() for tensor in mixture.snapshot().tensors().values()]
    fingerprint = hashlib.sha256(b"".join(parameters)).hexdigest()
    todo = []
    for path, output, rows in zip(inputs, outputs, data):
        origin = {"mixture": fingerprint, "rows": len(rows), "modified": path.stat().st_mtime_ns}
        if arguments.overwrite:
            output.unlink(missing_ok=True)
        if not _is_done(output, origin):
            todo.append((output, rows, origin))
    if arguments.output_dir:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for output, rows, origin in todo:
        _write_clusters(mixture, rows, output, origin)
        print(output)
    if len(todo) < len(inputs):
        print(f"tmixture: {len(inputs) - len(todo)} of {len(inputs)} files were there already", file=sys.stderr)


def _is_done(output: Path, origin: dict[str, Any]) -> bool:
    """Whether the output is there and was made from the same data by the same mixture.

    The record is put in place before the output: an output without one, or with another, is somebody else's.
    """
    if not output.exists():
        return False
    record = output.with_suffix(".json")
    made_from = json.loads(record.read_text()) if record.exists() else {}
    differing = [name for name, value in origin.items() if made_from.get(name) != value]
    if differing:
        raise ValueError(
            f"{output} is there already, but was not made from this input by this mixture (differing: "
            f"{', '.join(differing)}): give another --output-dir, or --overwrite"
        )
    return True


def _write_clusters(mixture: StudentTMixture, data: Shards, output: Path, origin: dict[str, Any]) -> None:
    """Label the rows of a file, a chunk at a time, under a temporary name until all is there."""
    record = output.with_suffix(".json")
    partial, partial_record = (path.with_name(path.name + ".partial") for path in (output, record))
    try:
        _write_rows(mixture, data, partial)
        partial_record.write_text(json.dumps(origin))
        os.replace(partial_record, record)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
        partial_record.unlink(missing_ok=True)


@torch.no_grad()
def _write_rows(mixture: StudentTMixture, data: Shards, path: Path) -> None:
    """Label, confidence and outlier weight of each row."""
    written = np.lib.format.open_memmap(path, mode="w+", dtype=FIELDS, shape=(len(data),))
    device = mixture.means.device
    size = mixture.chunk_size or chunk_size(mixture.n_components, mixture.n_features)
    start = 0
    for chunk in Chunks(data, mixture.n_features, device, size, allow_missing=mixture.allow_missing):
        rows = written[start : start + len(chunk.x)]
        confidence, label = mixture(chunk.x).max(1)
        outlier_weight = mixture.outlier_weights(chunk.x).gather(1, label[:, None])[:, 0]
        if mixture.background:
            label = torch.where(label == mixture.n_components - 1, -1, label)
        rows["label"], rows["confidence"] = label.cpu(), confidence.cpu()
        rows["outlier_weight"] = outlier_weight.cpu()
        start += len(chunk.x)
    written.flush()


# -------------------------------------------------------------------- describe


def describe(arguments: argparse.Namespace) -> None:
    """Print what a mixture is made of."""
    mixture = _load(arguments.mixture, "cpu")
    description = _description(mixture)
    if arguments.json:
        print(json.dumps(description, indent=2))
        return
    print(f"{mixture}\n{_outcome(mixture)}")
    if files.origin(arguments.mixture).get("normalize"):
        print("fitted to rows divided by their norm")
    if "rows" in description:
        print(f"fitted to {description['rows']:.0f} rows")
    print(f"as diverse as {description['effective_components']:.1f} components of equal weight")
    rows = description["components"]
    print("".join(f"{name.replace('_', ' '):>16}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>16}" if isinstance(value, str) else f"{value:16.5g}" for value in row.values()))


def _description(mixture: StudentTMixture) -> dict[str, Any]:
    """Of the mixture and of each of its components.

    The effective number of components is exp of the entropy of the weights; the spread of a component is the root of
    its mean variance. The mean outlier weight over the rows of the last fit is 1 in every component of its own scale
    once EM has converged.
    """
    weights = mixture.weights.double()
    columns = {"component": torch.arange(mixture.n_components), "weight": weights}
    description: dict[str, Any] = {
        "n_components": mixture.n_components,
        "n_features": mixture.n_features,
        "covariance_type": mixture.covariance_type,
        "n_free_parameters": mixture.n_free_parameters,
        "iterations": mixture.n_iter_,
        "converged": mixture.converged_,
        "log_likelihood": mixture.history_[-1] if mixture.history_ else None,
        "effective_components": math.exp(float(torch.special.entr(weights).sum())),
    }
    if mixture.running.started:
        stream = mixture.running.stream
        statistics = stream.statistics
        description["rows"] = float(stream.total_weight)
        columns["rows"] = statistics.responsibility * stream.total_weight
        columns["outlier_weight"] = statistics.mass / statistics.responsibility
    columns["dof"] = mixture.dof
    variance = mixture.snapshot().scale.variances(mixture.n_features).mean(1)
    columns["spread"] = variance.sqrt().expand(mixture.n_components)
    # JSON has no infinity.
    plain = [[v if math.isfinite(v) else str(v) for v in column.tolist()] for column in columns.values()]
    return {**description, "components": [dict(zip(columns, row)) for row in zip(*plain)]}


def _outcome(mixture: StudentTMixture) -> str:
    if not mixture.history_:
        return "not from a fit"
    state = "converged" if mixture.converged_ else "not converged"
    return f"{state} after {mixture.n_iter_} iterations, mean log-likelihood {mixture.history_[-1]:.6f}"


# -------------------------------------------------------------------- both


def _inputs(arguments: argparse.Namespace) -> list[Path]:
    """The files of embeddings that are meant; those in folders that hold something else are told of."""
    found, left_out = shards.find(arguments.embeddings, arguments.pattern, arguments.name)
    for path, reason in left_out:
        print(f"tmixture: {path} left out: {reason}", file=sys.stderr)
    return found


def _load(path: Path, device: str) -> StudentTMixture:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    return StudentTMixture.load(path, device=_device(device))


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
