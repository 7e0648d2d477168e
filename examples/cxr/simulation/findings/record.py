"""One record for all that is known of a finding; and a case of it in one study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cxr.simulation.anatomy import Anatomy
from cxr.simulation.radiograph import SIDES, Chest

Rng = np.random.Generator
BOTH = 0


@dataclass(frozen=True)
class Case:
    """One finding of one study.

    Attributes:
        name: of a registered finding.
        severity: from 0 (invisible) to 1.
        side: RIGHT, LEFT, or BOTH (also for a finding that has no side).
        seed: of its place and shape, which all images of the study share.
    """

    name: str
    severity: float
    side: int
    seed: int

    def sides(self) -> tuple[int, ...]:
        """The sides it is on."""
        return SIDES if self.side == BOTH else (self.side,)


@dataclass(frozen=True)
class Finding:
    """A finding of CXR-LT 2024: how often it occurs, with what, how it is called, and what it looks like.

    Attributes:
        name: as in CXR-LT.
        count: of the rows of CXR-LT 2024's ``train_labeled.csv`` that have it.
        sides: chance of (right, left, both); None if it has no side.
        chronic: share of its variance that belongs to the patient and not to the study; None is the share of what is
            acute. What lasts looks the same in every study.
        causes: loadings on the common causes it comes from, see `prevalence.CAUSES`.
        part_of: the whole that it is read off, and the share of its cases that name the part alone.
        wording: ways to name it in a report. {s} becomes its severity and {side} its side, with a trailing blank.
        reshape: changes the anatomy before the chest is laid out (a large heart).
        paint: changes the chest before the film is exposed (a nodule). `case.severity` runs from barely visible to
            gross.
    """

    name: str
    count: int
    sides: tuple[float, float, float] | None = None
    chronic: float | None = None
    causes: Mapping[str, float] = field(default_factory=dict)
    part_of: tuple[str, float] | None = None
    wording: tuple[str, ...] = ()
    reshape: Callable[[Anatomy, Case, Rng], None] | None = None
    paint: Callable[[Chest, Case, Rng], None] | None = None


REGISTERED: dict[str, Finding] = {}


def register(finding: Finding) -> None:
    """Make a finding known by its name."""
    REGISTERED[finding.name] = finding
