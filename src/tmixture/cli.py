"""The command line: `tmixture fit`, `tmixture predict` and `tmixture describe`.

    tmixture fit embeddings/ --components 40 --output mixture.safetensors
    tmixture predict mixture.safetensors embeddings/
    tmixture describe mixture.safetensors

Embeddings are files or folders of files: `.npy` and safetensors are memory-mapped, `.npz` are read one at a time, so
that their number of rows does not matter. Whatever is killed goes on where it was when the same command is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tmixture import files, shards
from tmixture.chunks import Chunks, chunk_size
from tmixture.diagnostics import ConvergenceWarning
from tmixture.mixture import StudentTMixture
from tmixture.scales import STRUCTURES
from tmixture.shards import Shards

# EM iterations between two checkpoints. Each checkpoint costs two passes over the data.
CHECKPOINT_ITERATIONS = 10
# What `predict` writes beside shard.npy: shard.clusters.npy, and shard.clusters.json on how it was made.
CLUSTERS = ".clusters.npy"
FIELDS = np.dtype([("label", np.int64), ("confidence", np.float32), ("outlier_weight", np.float32)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status: 0, 2 after an error, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KeyboardInterrupt:
        print("tmixture: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"tmixture: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


# -------------------------------------------------------------------- fit


def fit(arguments: argparse.Namespace) -> None:
    """Fit a mixture, going on from a checkpoint if there is one."""
    output: Path = arguments.output
    checkpoint = output.with_name(output.name + ".checkpoint")
    paths = [path for path in shards.find(arguments.embeddings, CLUSTERS) if path.resolve() != output.resolve()]
    data = Shards(paths, arguments.name, title="fit")
    mixture = StudentTMixture(
        arguments.components,
        data.n_features,
        dof=arguments.dof,
        learn_dof=arguments.learn_dof or False,
        covariance_type=arguments.covariance,
        rank=arguments.rank,
        init=arguments.init,
        max_iter=arguments.max_iter,
        tol=arguments.tol,
        generator=arguments.seed,
        device=_device(arguments.device),
    )
    if arguments.overwrite:
        output.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    for earlier in (checkpoint, output):
        if earlier.exists():
            mixture = _continued(earlier, mixture, len(data))
            print(f"tmixture: {earlier} has {mixture.n_iter_} iterations already", file=sys.stderr)
            break
    output.parent.mkdir(parents=True, exist_ok=True)
    while mixture.n_iter_ < mixture.max_iter and not mixture.converged_:
        try:
            _iterate(mixture, data, CHECKPOINT_ITERATIONS)
        finally:
            if mixture.n_iter_:
                mixture.save(checkpoint)
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


def _continued(path: Path, wanted: StudentTMixture, n_rows: int) -> StudentTMixture:
    """The earlier fit in a file, to be continued by the wanted stopping rule.

    Raises:
        ValueError: it is one of other data or with other settings.
    """
    earlier = StudentTMixture.load(path, device=wanted.means.device)
    was, now = _identity(earlier), {**_identity(wanted), "rows": n_rows}
    for name, value in now.items():
        if was[name] != value:
            raise ValueError(
                f"{path} is of another fit, with {name}={was[name]} and not {value}: give another --output, or "
                "--overwrite"
            )
    earlier.converged_ = earlier.converged_ and earlier.tol <= wanted.tol
    earlier.max_iter, earlier.tol = wanted.max_iter, wanted.tol
    return earlier


def _identity(mixture: StudentTMixture) -> dict[str, Any]:
    """What makes two fits the same but for their length."""
    free = ("max_iter", "tol")
    settings = {name: value for name, value in files.encoded(mixture.settings()).items() if name not in free}
    rows = round(float(mixture.running.total_weight)) if mixture.running.started else 0
    return {**settings, "dof": mixture.initial_dof.tolist(), "rows": rows}


# -------------------------------------------------------------------- predict


def predict(arguments: argparse.Namespace) -> None:
    """Write the clusters of every input next to it; what is there already, and whole, stays."""
    mixture = _load(arguments.mixture, arguments.device)
    inputs = [p for p in shards.find(arguments.embeddings, CLUSTERS) if p.resolve() != arguments.mixture.resolve()]
    outputs = [(arguments.output_dir or path.parent) / f"{path.stem}{CLUSTERS}" for path in inputs]
    for i, output in enumerate(outputs):
        if output in outputs[:i]:
            raise ValueError(f"{inputs[outputs.index(output)]} and {inputs[i]} would both be written to {output}")
    # All inputs are looked at before the first is worked on.
    data = [Shards([path], arguments.name, mixture.n_features, title=path.name) for path in inputs]
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


@torch.no_grad()
def _write_clusters(mixture: StudentTMixture, data: Shards, output: Path, origin: dict[str, Any]) -> None:
    """Label the rows of a file, a chunk at a time, under a temporary name until all is there."""
    partial = output.with_name(output.name + ".partial")
    written = np.lib.format.open_memmap(partial, mode="w+", dtype=FIELDS, shape=(len(data),))
    device = mixture.means.device
    size = mixture.chunk_size or chunk_size(mixture.n_components, mixture.n_features)
    start = 0
    for chunk in Chunks(data, mixture.n_features, device, size):
        rows = written[start : start + len(chunk.x)]
        confidence, label = mixture(chunk.x).max(1)
        outlier_weight = mixture.outlier_weights(chunk.x).gather(1, label[:, None])[:, 0]
        rows["label"], rows["confidence"] = label.cpu(), confidence.cpu()
        rows["outlier_weight"] = outlier_weight.cpu()
        start += len(chunk.x)
    written.flush()
    record = output.with_suffix(".json")
    record.with_name(record.name + ".partial").write_text(json.dumps(origin))
    os.replace(record.with_name(record.name + ".partial"), record)
    os.replace(partial, output)


# -------------------------------------------------------------------- describe


def describe(arguments: argparse.Namespace) -> None:
    """Print what a mixture is made of."""
    mixture = _load(arguments.mixture, "cpu")
    description = _description(mixture)
    if arguments.json:
        print(json.dumps(description, indent=2))
        return
    print(f"{mixture}\n{_outcome(mixture)}")
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


# -------------------------------------------------------------------- arguments


def _load(path: Path, device: str) -> StudentTMixture:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    return StudentTMixture.load(path, device=_device(device))


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tmixture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="fit | predict | describe")

    def add(command: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            command.__name__, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        added.set_defaults(command=command)
        return added

    fitting = add(fit, "Fit a mixture to embeddings, and save it.")
    fitting.add_argument("embeddings", nargs="+", type=Path, help="files or folders; together they are the data")
    fitting.add_argument("--output", "-o", type=Path, required=True, help="safetensors file for the mixture")
    fitting.add_argument("--components", "-k", type=int, required=True, help="number of components")
    fitting.add_argument("--dof", type=float, default=4.0, help="degrees of freedom; inf is Gaussian")
    fitting.add_argument("--learn-dof", choices=("shared", "component"), help="learn them")
    fitting.add_argument("--covariance", choices=tuple(STRUCTURES), default="diag", help="structure of the scales")
    fitting.add_argument("--rank", type=int, help="of lowrank scales")
    fitting.add_argument("--init", choices=("kmeans", "kmeans++", "random"), default="kmeans", help="how to start")
    fitting.add_argument("--max-iter", type=int, default=100, help="most EM iterations")
    fitting.add_argument("--tol", type=float, default=1e-4, help="nats per row that may be left to gain")
    fitting.add_argument("--seed", type=int, default=0, help="of the start")

    predicting = add(predict, f"Write label, confidence and outlier weight of each row to NAME{CLUSTERS}.")
    predicting.add_argument("mixture", type=Path, help="what fit has written")
    predicting.add_argument("embeddings", nargs="+", type=Path, help="files or folders")
    predicting.add_argument("--output-dir", type=Path, help="where to write; next to each file by default")

    for added in (fitting, predicting):
        added.add_argument("--name", help="of the array in .npz and safetensors files that hold several")
        added.add_argument("--device", default="cpu", help="where to compute, such as cuda")
        added.add_argument("--overwrite", action="store_true", help="start anew, whatever is there")

    describing = add(describe, "Print what a mixture is made of.")
    describing.add_argument("mixture", type=Path, help="what fit has written")
    describing.add_argument("--json", action="store_true", help="for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
