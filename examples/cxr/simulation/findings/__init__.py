"""The 40 findings of CXR-LT 2024 on a simulated radiograph: one record each, in the modules of this folder.

A new finding is one record with its painter beside it, in any module here: all of them are read.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import numpy as np

from cxr.simulation.anatomy import LEFT, RIGHT, Anatomy, View
from cxr.simulation.findings.record import BOTH, REGISTERED, Case, Finding, Rng
from cxr.simulation.radiograph import Chest

for module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

FINDINGS: dict[str, Finding] = {name: REGISTERED[name] for name in sorted(REGISTERED)}


def draw_case(name: str, rng: Rng) -> Case:
    """A finding of random severity, side and place."""
    rates = FINDINGS[name].sides
    side = BOTH if rates is None else int(rng.choice([RIGHT, LEFT, BOTH], p=rates))
    return Case(name, 0.15 + 0.85 * float(rng.beta(1.7, 1.4)), side, int(rng.integers(2**31)))


def render_chest(anatomy: Anatomy, view: View, cases: list[Case], image_size: int) -> Chest:
    """Lay out a chest with its findings, ready for the film. `anatomy` is changed by the findings."""
    for case in cases:
        reshape = FINDINGS[case.name].reshape
        if reshape is not None:
            reshape(anatomy, case, np.random.default_rng([case.seed, 0]))
    chest = Chest(anatomy, view, image_size)
    parts = [FINDINGS[case.name].part_of for case in cases]
    wholes = {part[0] for part in parts if part is not None}
    for case in cases:
        paint = FINDINGS[case.name].paint
        if paint is not None and not (case.name == "Fracture" and case.name in wholes):  # its part is painted
            paint(chest, case, np.random.default_rng([case.seed, 1]))
    return chest
