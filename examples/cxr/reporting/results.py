"""The outcome of one training run: what the report is made of, and what a second run of the script does not repeat."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Result:
    """One arm, trained with one seed on one fold and tested on the images it never saw.

    Attributes:
        arm: name of the arm, a key of `cxr.training.arms.ARMS`.
        seed: seed of the initial weights, of the data order and of the splits.
        fold: number of the fold, from 0.
        label_names: the C findings.
        rows: (n,) row numbers of the test images in the cohort.
        patients: (n,) patient of each test image.
        labels: (n, C) bool, whether the finding is present.
        probabilities: (n, C) zero-shot probabilities.
        without_axis: (n, C) the same from image embeddings without their first principal component; NaN for an arm
            whose scores come from something else.
        embeddings: (n, d) unit-norm image embeddings of the test images.
        clusters: (n,) component of each test image in the arm's mixture; -1 for an arm without one.
        train_counts: (C,) positives of each finding in the training part.
        history: one entry per epoch: "epoch", "seconds", "objective", "metric", "validation", "learning_rate" and,
            for arms with a mixture, the loss's cluster statistics.
        cost: "seconds_per_step", "flops_per_step", "peak_bytes"; empty for an arm that is not trained.
    """

    arm: str
    seed: int
    fold: int
    label_names: list[str]
    rows: npt.NDArray[np.intp]
    patients: npt.NDArray[np.int64]
    labels: npt.NDArray[np.bool_]
    probabilities: npt.NDArray[np.float32]
    without_axis: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int64]
    train_counts: npt.NDArray[np.int64]
    history: list[dict[str, float]]
    cost: dict[str, float]

    @staticmethod
    def path(output: Path, arm: str, seed: int, fold: int) -> Path:
        """Where the outcome of a run is kept."""
        return output / "runs" / f"seed{seed}-fold{fold}" / arm / "result.npz"

    def save(self, output: Path) -> None:
        """Write the result; it is there whole or not at all."""
        path = self.path(output, self.arm, self.seed, self.fold)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in values.items() if name not in arrays}
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, allow_pickle=False, plain=np.array(json.dumps(plain)), **arrays)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote."""
        with np.load(path) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files if name != "plain"}
            return cls(**json.loads(str(file["plain"])), **arrays)


def load_results(output: Path) -> list[Result]:
    """All results below an output folder, ordered by seed, fold and arm."""
    found = [Result.load(path) for path in sorted(output.glob("runs/*/*/result.npz"))]
    return sorted(found, key=lambda result: (result.seed, result.fold, result.arm))


def describe(config: Any) -> dict[str, Any]:
    """A dataclass of settings as plain values, for JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
