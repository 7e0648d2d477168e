"""Bones, soft tissue, the abdomen below, what others have put in; and a normal chest."""

from __future__ import annotations

import numpy as np

from cxr.simulation.anatomy import RIGHT, Anatomy
from cxr.simulation.findings.record import Case, Finding, Rng, register
from cxr.simulation.hardware import draw_devices, smooth_path
from cxr.simulation.radiograph import SIDES, Chest, Drawing, break_index, posterior_ribs, ramp


def _clavicle_fracture_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.clavicle_break[case.side] = 0.06 + 0.1 * case.severity


register(
    Finding(
        name="Clavicle Fracture",
        count=168,
        sides=(0.5, 0.5, 0.0),
        chronic=0.6,
        part_of=("Fracture", 0.04),
        wording=("{side}clavicle fracture", "displaced fracture of the {side}clavicle", "{side}clavicular fracture"),
        reshape=_clavicle_fracture_shape,
    )
)


def _fracture(chest: Chest, case: Case, rng: Rng) -> None:
    """Of the shoulder: a dark gap and the edge that stands out beside it."""
    a = chest.anatomy
    centre = np.array([case.side * 0.78, a.top + 0.33]) + rng.normal(0, 0.015, 2)
    across = np.array([case.side * 0.15, 0.09]) * (0.7 + 0.5 * case.severity)
    zigzag = centre + np.linspace(-1, 1, 6)[:, None] * across + rng.normal(0, 0.014, (6, 2))
    gap, edge = Drawing(chest), Drawing(chest)
    gap.line(zigzag, 0.026 + 0.016 * case.severity)
    edge.line(zigzag - np.array([0.0, 0.035]), 0.024)
    chest.density += (0.35 + 0.3 * case.severity) * (edge.field(0.004) - gap.field(0.004)) * chest.body


register(
    Finding(
        name="Fracture",
        count=11568,
        sides=(0.5, 0.5, 0.0),
        chronic=0.7,
        causes={"air leak": 0.4},
        wording=("{side}shoulder fracture", "{side}proximal humeral fracture", "{side}sided fracture"),
        paint=_fracture,
    )
)


def _kyphosis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    s = case.severity
    a.rib_spacing *= 1 - 0.2 * s
    a.rib_slope += 0.3 * s
    a.base -= 0.1 * s
    a.clavicle -= 0.1 * s
    a.widening += 0.02 * s


def _kyphosis(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    chin = chest.ellipse((a.shift * 0.5, a.top - 0.16), (0.26, 0.2 + 0.12 * case.severity), soft=0.35)
    chest.density += (0.35 + 0.5 * case.severity) * chin
    hump = ramp(0.11 - chest.depth, 0.06) * ramp(chest.v - a.top, 0.2)
    chest.density += 0.3 * case.severity * hump * chest.lung


register(
    Finding(
        name="Kyphosis",
        count=778,
        chronic=0.9,
        causes={"age": 0.5},
        wording=("{s}kyphosis", "kyphosis of the thoracic spine", "kyphotic patient"),
        reshape=_kyphosis_shape,
        paint=_kyphosis,
    )
)


register(
    Finding(
        name="Normal",
        count=34292,
        chronic=0.5,
    )
)


def _pneumoperitoneum(chest: Chest, case: Case, rng: Rng) -> None:
    depth = 0.03 + 0.07 * case.severity
    for side in SIDES if rng.random() < 0.4 else (RIGHT,):
        arc = ramp(-chest.above - 0.025, 0.015) * ramp(chest.above + 0.025 + depth, 0.02)
        arc = arc * ramp(0.24 - np.abs(chest.depth - 0.32), 0.15) * chest.half(side)
        chest.density -= (0.7 + 0.7 * case.severity) * arc


register(
    Finding(
        name="Pneumoperitoneum",
        count=516,
        causes={"collapse": 0.35, "air leak": 0.2},
        wording=("pneumoperitoneum", "free air under the diaphragm", "free intraperitoneal air"),
        paint=_pneumoperitoneum,
    )
)


def _rib_fracture_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    first, n = int(rng.integers(2, 7)), 2 + round(2 * case.severity)
    where = rng.uniform(0.4, 0.8)
    for rib in range(first, min(first + n, 10)):
        a.rib_breaks.append((case.side, rib, float(where + rng.normal(0, 0.03)), 0.045 + 0.05 * case.severity))


def _rib_fracture(chest: Chest, case: Case, rng: Rng) -> None:
    """Callus where the ribs broke and a little haze around it."""
    ribs = posterior_ribs(chest.anatomy, case.side)
    for side, rib, where, step in chest.anatomy.rib_breaks:
        if side == case.side:
            centre = ribs[rib, break_index(where)] + np.array([0.0, 0.5 * step])
            chest.density += (0.3 + 0.5 * case.severity) * chest.ellipse(centre, (0.032, 0.045), soft=0.6) * chest.body
            chest.opacify(chest.ellipse(centre, (0.12, 0.12), soft=1.2), 0.1 + 0.15 * case.severity)


register(
    Finding(
        name="Rib Fracture",
        count=8919,
        sides=(0.5, 0.5, 0.0),
        chronic=0.7,
        part_of=("Fracture", 0.04),
        wording=("{side}rib fracture", "{side}rib fractures", "displaced {side}sided rib fractures"),
        reshape=_rib_fracture_shape,
        paint=_rib_fracture,
    )
)


def _subcutaneous_emphysema(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    for side in case.sides():
        for drop in np.linspace(0.25, 0.75, 9):  # gas between the fibres of the pectoral muscle
            start = (side * 0.86, a.top + 0.22 + 0.1 * drop)
            pen.line(
                smooth_path([start, (side * 0.6, a.top + 0.25 + 0.3 * drop), (side * 0.3, a.top + drop)]),
                0.016,
                rng.uniform(0.3, 1),
            )
    bubbles = 0.6 * ramp(chest.cloud(0.03, rng) - 0.65, 0.5) * ramp(chest.depth - chest.outer - 0.03, 0.04)
    wanted = np.logical_or.reduce([chest.half(side) for side in case.sides()])
    chest.density -= (0.3 + 0.5 * case.severity) * np.maximum(0.45 * pen.field(0.003), bubbles) * wanted * chest.body


register(
    Finding(
        name="Subcutaneous Emphysema",
        count=2046,
        sides=(0.35, 0.35, 0.3),
        causes={"air leak": 0.8},
        wording=("{s}{side}subcutaneous emphysema", "{side}chest wall subcutaneous air"),
        paint=_subcutaneous_emphysema,
    )
)


def _support_devices(chest: Chest, case: Case, rng: Rng) -> None:
    draw_devices(chest, case.severity, rng)


register(
    Finding(
        name="Support Devices",
        count=86079,
        chronic=0.6,
        causes={"heart failure": 0.3, "collapse": 0.4, "air leak": 0.25},
        paint=_support_devices,
    )
)
