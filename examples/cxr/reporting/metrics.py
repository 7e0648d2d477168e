"""The numbers of the report, each under a name. One that does not exist, such as an AUC without positives, is nan.

A group of findings is "total", "base" or "rare". `plain` turns all of them into what JSON knows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from cxr.reporting.statistics import Difference, Interval, PairedT, Summary

GROUPS = ("total", "base", "rare")


@dataclass(frozen=True)
class RunScore(Interval):
    """Score of one seed and fold, over the `n_defined` findings that have positives and negatives there."""

    seed: int
    fold: int
    n_defined: int


@dataclass(frozen=True)
class RunDifference(Difference):
    """Difference of one seed and fold."""

    seed: int
    fold: int


@dataclass(frozen=True)
class Score(Interval):
    """Mean over runs of one group's macro score, with the interval from resampled patients (nan for the precision).

    Attributes:
        n_classes: findings in the group.
        seeds: mean, spread and t-interval over seeds, each the mean of its folds.
        folds: the same over folds, each the mean over its seeds.
        runs: the single runs.
    """

    n_classes: int
    seeds: Summary | None
    folds: Summary | None
    runs: list[RunScore]


@dataclass(frozen=True)
class Verdict:
    """The strictest of three tests that the number of runs allows: "splits", "seeds" or "patients"."""

    test: str
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class ScoreDifference:
    """Arm a minus arm b in one group, over the runs that have both; three tests are three questions.

    Attributes:
        value: mean over the runs.
        patients: would other patients show it? (bootstrap)
        seeds: would another seed on this cohort? (paired t)
        splits: would another division of the cohort into training and test part? (corrected paired t)
        verdict: of the strictest of them.
        runs: the single runs.
    """

    value: float
    patients: Difference
    seeds: PairedT
    splits: PairedT
    verdict: Verdict
    runs: list[RunDifference]

    def tested(self, test: str) -> Difference:
        """The outcome of "patients", "seeds" or "splits"."""
        return {"patients": self.patients, "seeds": self.seeds, "splits": self.splits}[test]


@dataclass(frozen=True)
class Cost:
    """What a step costs: mean, spread and number of runs, and the ratio to the reference's in the same run."""

    mean: float
    sd: float
    n: int
    ratio: Summary | None


@dataclass(frozen=True)
class ArmMetrics:
    """One arm over all of its runs: scores by group, AUC by finding, costs by quantity.

    `without_axis` is the mean AUC, by group, of embeddings without the axis along which they differ most;
    NaN for an arm whose scores come from something else.
    """

    title: str
    trained: bool
    n_runs: int
    auc: dict[str, Score]
    without_axis: dict[str, float]
    average_precision: dict[str, Score]
    classes: dict[str, Interval | None]
    cost: dict[str, Cost]


@dataclass(frozen=True)
class Comparison:
    """Arm a minus arm b, by group; by finding only for the pairs that the method stands or falls with."""

    a: str
    b: str
    auc: dict[str, ScoreDifference | None]
    classes: dict[str, Difference | None] | None


@dataclass(frozen=True)
class FindingCounts:
    """Images that show a finding: in the whole cohort, where it is known, and in the parts (mean over runs)."""

    name: str
    rare: bool
    cohort: int | None
    train: float
    test: float


@dataclass(frozen=True)
class CohortCounts:
    """What there is to see; None where only the test images are known. Findings from the most frequent down."""

    images: int | None
    patients: int | None
    studies: int | None
    views: dict[str, int] | None
    findings: list[FindingCounts]


@dataclass(frozen=True)
class EvaluatedRun:
    """Who one seed and fold was tested on, and which arms were."""

    seed: int
    fold: int
    test_images: int
    test_patients: int
    arms: list[str]


@dataclass(frozen=True)
class EvaluationSettings:
    """How the intervals were made."""

    level: float
    n_resamples: int
    seed: int
    test_over_train: float


@dataclass(frozen=True)
class Metrics:
    """All numbers of the report; `reference` is the arm that all others are compared with, or None."""

    arms: dict[str, ArmMetrics]
    reference: str | None
    comparisons: list[Comparison]
    cohort: CohortCounts
    runs: list[EvaluatedRun]
    settings: EvaluationSettings


def plain(metrics: Metrics) -> dict[str, Any]:
    """As dictionaries and lists for JSON, with None for what is not a number."""
    return _without_nan(asdict(metrics))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
