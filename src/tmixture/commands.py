"""What the commands of the command line do; `cli` has their arguments."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tmixture import files
from tmixture.data import shards
from tmixture.data.arrow import ArrowRows, TableWriter
from tmixture.data.chunks import Chunks, chunk_size
from tmixture.data.shards import CLUSTERS, Shards, suffix
from tmixture.data.sources import MODULES, Place, is_remote, needed
from tmixture.diagnostics import ConvergenceWarning
from tmixture.distributed import is_active
from tmixture.launched import file_of_first, has_been_restarted, is_first, launched, own_share
from tmixture.mixture import StudentTMixture

FIELDS = np.dtype([("label", np.int64), ("confidence", np.float32), ("outlier_weight", np.float32)])


# -------------------------------------------------------------------- fit


def fit(arguments: argparse.Namespace) -> None:
    """Fit a mixture, going on from a checkpoint if there is one; with the other processes of `torchrun`, if any."""
    with launched(_device(arguments.device), arguments.timeout) as device:
        _fit(arguments, device)


def _fit(arguments: argparse.Namespace, device: torch.device) -> None:
    output: Path = arguments.output
    checkpoint = output.with_name(output.name + ".checkpoint")
    inputs = _inputs(arguments)
    data, n_features = _own_rows(arguments, inputs)
    origin = {"normalize": arguments.normalize, "files": [_stamp(path) for path in inputs]}
    mixture = StudentTMixture(
        arguments.components,
        n_features,
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
        distributed=is_active(),
        device=device,
    )
    if is_first():
        if arguments.overwrite and not has_been_restarted():
            output.unlink(missing_ok=True)
            checkpoint.unlink(missing_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
    earlier = next((path for path in (checkpoint, output) if is_first() and path.exists()), None)
    copy = file_of_first(earlier)
    if copy is not None:
        mixture = _continued(copy, mixture, origin, called=earlier or output)
        _tell(f"tmixture: {earlier} has {mixture.n_iter_} iterations already")
        if copy != earlier:
            copy.unlink()
    while mixture.n_iter_ < mixture.max_iter and not mixture.converged_:
        try:
            _iterate(mixture, data, arguments.checkpoint_every)
        finally:
            if mixture.n_iter_ and is_first():
                _save_alone(mixture, checkpoint, origin)
        _tell(f"iteration {mixture.n_iter_}: mean log-likelihood {mixture.history_[-1]:.6f}")
    if not is_first():
        return
    if checkpoint.exists():
        os.replace(checkpoint, output)
    if not mixture.converged_:
        _tell("tmixture: not converged: a larger --max-iter goes on from here")
    print(f"{output}: {mixture}, {_outcome(mixture)}")


def _own_rows(arguments: argparse.Namespace, inputs: list[Place]) -> tuple[Shards | torch.Tensor, int]:
    """The rows of this process, and their width; no rows where there are fewer files than processes."""
    how = {"normalize": arguments.normalize, "allow_missing": arguments.allow_missing}
    everything = Shards(inputs, _columns(arguments), title="fit", **how)
    own = own_share(inputs, everything.lengths)
    if len(own) == len(inputs):
        return everything, everything.n_features
    if not own:
        return torch.empty(0, everything.n_features), everything.n_features
    title = "fit" if is_first() else ""
    return Shards(own, _columns(arguments), everything.n_features, title, **how), everything.n_features


def _save_alone(mixture: StudentTMixture, path: Path, origin: dict[str, Any]) -> None:
    """Save it as one that works alone, whoever loads it."""
    shared, mixture.distributed = mixture.distributed, False
    try:
        mixture.save(path, origin)
    finally:
        mixture.distributed = shared


def _tell(line: str) -> None:
    """Say on the console of the first process how things go."""
    if is_first():
        print(line, file=sys.stderr)


def _iterate(mixture: StudentTMixture, data: Shards | torch.Tensor, n_iter: int) -> None:
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


def _continued(path: Path, wanted: StudentTMixture, origin: dict[str, Any], called: Path) -> StudentTMixture:
    """The earlier fit in a file, or in a copy of the one called so, to be continued by the wanted stopping rule.

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
            raise ValueError(f"{called} is of another fit, with {differing}: give another --output, or --overwrite")
    earlier.converged_ = earlier.converged_ and earlier.tol <= wanted.tol
    for free in ("max_iter", "tol", "chunk_size", "distributed"):
        setattr(earlier, free, getattr(wanted, free))
    return earlier


def _identity(mixture: StudentTMixture, origin: dict[str, Any]) -> dict[str, Any]:
    """What makes two fits the same but for their length and the memory that they take."""
    free = ("max_iter", "tol", "chunk_size", "distributed")
    settings = {name: value for name, value in files.encoded(mixture.settings()).items() if name not in free}
    return {**settings, "dof": mixture.initial_dof.tolist(), **origin}


def _stamp(place: Place) -> list[str | int]:
    """What changes when a file does."""
    if is_remote(place):
        filesystem, path = needed("fsspec").core.url_to_fs(str(place))
        info = filesystem.info(path)
        changed = (str(info[name]) for name in ("ETag", "etag", "mtime", "LastModified", "created") if name in info)
        return [str(place), info.get("size") or 0, next(changed, "")]
    path = Path(place)
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


# -------------------------------------------------------------------- predict


def predict(arguments: argparse.Namespace) -> None:
    """Write the clusters of every input next to it; what is there already, and whole, stays."""
    mixture = _load(arguments.mixture, arguments.device)
    inputs = _inputs(arguments)
    outputs = [_beside(place, arguments.output_dir) for place in inputs]
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            raise ValueError(f"{inputs[outputs.index(output)]} and {inputs[i]} would both be written to {output}")
    # All inputs are looked at before the first is worked on.
    normalize = files.origin(arguments.mixture).get("normalize", False)
    how = {"normalize": normalize, "allow_missing": mixture.allow_missing}
    columns = _columns(arguments)
    data = [Shards([place], columns, mixture.n_features, Path(place).name, **how) for place in inputs]
    fingerprint = mixture.snapshot().digest
    todo = []
    for path, output, rows in zip(inputs, outputs, data):
        origin = {"mixture": fingerprint, "rows": len(rows), "modified": _stamp(path)[-1]}
        origin |= {"kept": arguments.keep} if arguments.keep else {}
        if arguments.overwrite:
            output.unlink(missing_ok=True)
        if not _is_done(output, origin):
            todo.append((output, rows, origin))
    if arguments.output_dir:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for output, rows, origin in todo:
        _write_clusters(mixture, rows, output, origin, arguments.keep)
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


def _beside(place: Place, folder: Path | None) -> Path:
    """Where the clusters of a file go: a table for a table, else an array."""
    kind = suffix(place) if MODULES.get(suffix(place)) == "arrow" else ".npy"
    if folder is None and is_remote(place):
        raise ValueError(f"{place} is far away: say by --output-dir where its clusters go")
    return (folder or Path(place).parent) / f"{Path(place).stem}{CLUSTERS}{kind}"


def _write_clusters(
    mixture: StudentTMixture, data: Shards, output: Path, origin: dict[str, Any], keep: Sequence[str]
) -> None:
    """Label the rows of a file, a chunk at a time, under a temporary name until all is there."""
    record = output.with_suffix(".json")
    partial, partial_record = (path.with_name(path.name + ".partial") for path in (output, record))
    try:
        if output.suffix == ".npy":
            _write_array(mixture, data, partial, keep)
        else:
            _write_table(mixture, data, partial, keep)
        partial_record.write_text(json.dumps(origin))
        os.replace(partial_record, record)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
        partial_record.unlink(missing_ok=True)


def _write_array(mixture: StudentTMixture, data: Shards, path: Path, keep: Sequence[str]) -> None:
    if keep:
        raise ValueError(f"--keep {' '.join(keep)} is for tables, but {data.paths[0]} is none")
    written = np.lib.format.open_memmap(path, mode="w+", dtype=FIELDS, shape=(len(data),))
    start = 0
    for columns in _clusters(mixture, data):
        rows = written[start : start + len(columns["label"])]
        for name, values in columns.items():
            rows[name] = values
        start += len(rows)
    written.flush()


def _write_table(mixture: StudentTMixture, data: Shards, path: Path, keep: Sequence[str]) -> None:
    """Columns label, confidence and outlier_weight, and those of the input that are to be kept."""
    kept = ArrowRows(str(data.paths[0]), data.name)
    size, writer = _rows_at_a_time(mixture), TableWriter(path, suffix(data.paths[0]))
    others = _regrouped(kept.tables(size, keep), size) if keep else itertools.repeat({})
    try:
        for other, columns in zip(others, _clusters(mixture, data)):
            writer.write({**other, **columns})
    finally:
        writer.close()


def _regrouped(batches: Iterable[Any], size: int) -> Iterator[dict[str, Any]]:
    """Record batches of any length as columns of exactly `size` rows, but for the last ones."""
    pyarrow = needed("pyarrow")
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= size:
            table = pyarrow.Table.from_batches(waiting)
            yield dict(zip(table.column_names, table.slice(0, size).columns))
            waiting = table.slice(size).to_batches()
    if sum(map(len, waiting)):
        table = pyarrow.Table.from_batches(waiting)
        yield dict(zip(table.column_names, table.columns))


def _rows_at_a_time(mixture: StudentTMixture) -> int:
    return mixture.chunk_size or chunk_size(mixture.n_components, mixture.n_features)


@torch.no_grad()
def _clusters(mixture: StudentTMixture, data: Shards) -> Iterator[dict[str, np.ndarray]]:
    """Label, confidence and outlier weight of the rows, a chunk at a time."""
    device, size = mixture.means.device, _rows_at_a_time(mixture)
    for chunk in Chunks(data, mixture.n_features, device, size, allow_missing=mixture.allow_missing):
        confidence, label = mixture(chunk.x).max(1)
        outlier_weight = mixture.outlier_weights(chunk.x).gather(1, label[:, None])[:, 0]
        if mixture.background:
            label = torch.where(label == mixture.n_components - 1, -1, label)
        values = (label, confidence.float(), outlier_weight.float())
        yield {name: value.cpu().numpy() for name, value in zip(FIELDS.names or (), values)}


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


def _columns(arguments: argparse.Namespace) -> str | list[str] | None:
    """The array or the columns that hold the rows."""
    names = (arguments.name or "").split(",")
    return names if len(names) > 1 else arguments.name


def _inputs(arguments: argparse.Namespace) -> list[Place]:
    """The files of embeddings that are meant; those in folders that hold something else are told of."""
    found, left_out = shards.find(arguments.embeddings, arguments.pattern, _columns(arguments))
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
