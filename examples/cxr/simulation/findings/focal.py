"""What has a place of its own in or beside a lung."""

from __future__ import annotations

import numpy as np

from cxr.simulation.findings.painting import (
    beside_wall,
    patch,
    place,
    ring,
    solid,
)
from cxr.simulation.findings.record import Case, Finding, Rng, register
from cxr.simulation.hardware import smooth_path
from cxr.simulation.radiograph import Chest, Drawing, ramp


def _adenopathy(chest: Chest, case: Case, rng: Rng) -> None:
    a, size = chest.anatomy, 0.05 + 0.05 * case.severity
    nodes = [np.array([-0.12 + a.shift, a.arch() - 0.06])]
    for side in case.sides():
        nodes += [a.hilum_point(side, du, dv) for du, dv in ((0.03, -0.06), (0.05, 0.03), (0.02, 0.1))]
    for centre in nodes:
        field = chest.ellipse(centre + rng.normal(0, 0.01, 2), (size, 1.15 * size), soft=0.3)
        solid(chest, field, 0.9)


register(
    Finding(
        name="Adenopathy",
        count=3409,
        sides=(0.35, 0.25, 0.4),
        causes={"old infection": 0.2, "tumour": 0.55},
        wording=("{side}hilar adenopathy", "enlarged {side}hilar lymph nodes", "mediastinal lymphadenopathy"),
        paint=_adenopathy,
    )
)


def _granuloma(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 4))):
        radius = 0.017 + 0.016 * case.severity
        spot = chest.ellipse(place(chest, case.side, rng, (0.1, 0.85), (0.2, 0.8)), (radius, radius), soft=0.4)
        chest.density += (0.8 + 0.8 * case.severity) * spot


register(
    Finding(
        name="Granuloma",
        count=2965,
        sides=(0.5, 0.5, 0.0),
        chronic=0.8,
        causes={"old infection": 0.4},
        wording=("calcified {side}lung granuloma", "{side}granuloma", "calcified granulomas in the {side}lung"),
        paint=_granuloma,
    )
)


def _lung_lesion(chest: Chest, case: Case, rng: Rng) -> None:
    centre = np.asarray(place(chest, case.side, rng, (0.15, 0.85), (0.3, 0.75)))
    radius = 0.065 + 0.06 * case.severity
    wall, hole = ring(chest, centre, radius, 0.55 * radius, rng)
    pen = Drawing(chest)
    for angle in rng.uniform(0, 2 * np.pi, 9):  # spicules
        step = np.array([np.cos(angle), np.sin(angle)])
        pen.line(centre + np.outer([0.9 * radius, radius * rng.uniform(1.4, 1.9)], step), 0.012, 0.8)
    solid(chest, np.maximum(wall, 0.6 * pen.field(0.003)), 0.5 + 0.4 * case.severity)
    chest.markings *= 1 - hole


register(
    Finding(
        name="Lung Lesion",
        count=2338,
        sides=(0.5, 0.5, 0.0),
        chronic=0.5,
        causes={"tumour": 0.65},
        wording=("{side}lung lesion", "cavitary {side}lung lesion", "spiculated {side}lesion"),
        paint=_lung_lesion,
    )
)


def _mass(chest: Chest, case: Case, rng: Rng) -> None:
    radius = 0.1 + 0.07 * case.severity
    centre = place(chest, case.side, rng, (0.15, 0.85), (0.2, 0.8))
    field = patch(chest, centre, radius, rng, soft=0.2, rough=0.12, mottle=0.0)
    solid(chest, field, 0.7 + 0.3 * case.severity)
    chest.density += 0.1 * field * chest.lung


register(
    Finding(
        name="Mass",
        count=5288,
        sides=(0.5, 0.5, 0.0),
        chronic=0.5,
        causes={"tumour": 0.65},
        wording=("{side}lung mass", "large {side}mass", "{side}mass, concerning for malignancy"),
        paint=_mass,
    )
)


def _nodule(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        radius = (0.03 + 0.022 * case.severity) * rng.uniform(0.85, 1.15)
        spot = chest.ellipse(place(chest, case.side, rng, (0.1, 0.9), (0.2, 0.85)), (radius, radius), soft=0.35)
        solid(chest, spot, 0.55 + 0.45 * case.severity)


register(
    Finding(
        name="Nodule",
        count=7531,
        sides=(0.5, 0.5, 0.0),
        chronic=0.5,
        causes={"old infection": 0.35, "tumour": 0.5},
        wording=("{side}lung nodule", "{side}pulmonary nodule", "nodular opacity in the {side}lung"),
        paint=_nodule,
    )
)


def _rounded_atelectasis(chest: Chest, case: Case, rng: Rng) -> None:
    a, side = chest.anatomy, case.side
    radius = 0.08 + 0.05 * case.severity
    centre = np.asarray(a.lung_point(side, rng.uniform(0.65, 0.85), 0.8))
    tail = Drawing(chest)
    for spread in (-1.0, 0.0, 1.0):  # vessels sweep into the mass like a comet's tail
        swing = centre + np.array([-side * 0.16, -0.12 + 0.1 * spread])
        tail.line(
            smooth_path([tuple(a.hilum_point(side)), tuple(swing), (centre[0], centre[1] + 0.7 * radius * spread)]),
            0.016,
        )
    solid(chest, chest.ellipse(centre, (radius, 0.9 * radius), soft=0.2), 0.8 + 0.2 * case.severity)
    solid(chest, 0.7 * tail.field(0.004), 0.7)
    near = ramp(0.2 - np.abs(chest.v - np.float32(centre[1])), 0.1)
    solid(chest, beside_wall(chest, side, 0.045) * near, 0.8)


register(
    Finding(
        name="Round(ed) Atelectasis",
        count=172,
        sides=(0.5, 0.5, 0.0),
        chronic=0.7,
        causes={"asbestos": 0.65},
        wording=("{side}rounded atelectasis", "{side}round atelectasis with a comet tail"),
        paint=_rounded_atelectasis,
    )
)
