"""The pleura, its fissures, and air or fluid in it."""

from __future__ import annotations

import numpy as np

from cxr.simulation.anatomy import RIGHT
from cxr.simulation.findings.painting import (
    beside_wall,
    pneumothorax_space,
    solid,
)
from cxr.simulation.findings.record import Case, Finding, Rng, register
from cxr.simulation.hardware import smooth_path
from cxr.simulation.radiograph import Chest, Drawing, ramp


def _azygos_lobe(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    bulge = rng.uniform(0.55, 0.8)
    heights, depths = [0.0, 0.14, 0.3, 0.36], [0.6, bulge, 0.45, 0.08]
    path = smooth_path([tuple(a.lung_point(RIGHT, h, d)) for h, d in zip(heights, depths)])
    pen.line(path, 0.012 + 0.01 * case.severity)
    vein = chest.ellipse(path[-1], (0.028, 0.045), soft=0.3)
    chest.density += (0.4 + 0.3 * case.severity) * np.maximum(pen.field(0.003), vein)
    chest.opacify(chest.ellipse(a.lung_point(RIGHT, 0.15, 0.2), (0.11, 0.2), soft=0.5), 0.2 * case.severity)


register(
    Finding(
        name="Azygos Lobe",
        count=199,
        chronic=0.95,
        wording=("azygos lobe", "incidental azygos fissure", "azygos lobe, a normal variant"),
        paint=_azygos_lobe,
    )
)


def _fissure(chest: Chest, case: Case, rng: Rng) -> None:
    pen = Drawing(chest)
    height, sag = rng.uniform(0.46, 0.56), rng.normal(0.0, 0.03)
    q = np.linspace(0, 1, 10)
    pen.line(
        chest.anatomy.lung_point(RIGHT, height + sag * np.sin(np.pi * q) + 0.03 * q, 0.12 + 0.88 * q),
        0.02 + 0.022 * case.severity,
    )
    solid(chest, pen.field(0.004), 0.6 + 0.4 * case.severity)


register(
    Finding(
        name="Fissure",
        count=2803,
        causes={"heart failure": 0.35},
        wording=("fluid in the fissure", "thickened minor fissure", "{s}fissural thickening"),
        paint=_fissure,
    )
)


def _hydropneumothorax(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    level = a.base - a.span() * (0.1 + 0.3 * case.severity)
    space, edge = pneumothorax_space(chest, case.side, 0.12 + 0.16 * case.severity, 0.4)
    chest.markings *= 1 - space
    chest.aeration += 0.15 * space
    chest.density += 0.3 * edge * chest.lung * (chest.v < level)
    fluid = ramp(chest.v - np.float32(level), 0.012) * chest.half(case.side)
    solid(chest, fluid, 0.97)


register(
    Finding(
        name="Hydropneumothorax",
        count=646,
        sides=(0.5, 0.5, 0.0),
        causes={"collapse": 0.3, "air leak": 0.5},
        wording=("{s}{side}hydropneumothorax", "{side}air-fluid level of a hydropneumothorax"),
        paint=_hydropneumothorax,
    )
)


def _pleural_effusion(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        height = (0.03 + 0.42 * case.severity**1.5) * rng.uniform(0.6, 1.0)
        meniscus = chest.anatomy.base - height * (0.35 + 0.9 * np.clip(chest.depth / chest.outer.clip(0.1), 0, 1) ** 3)
        field = ramp(
            np.maximum(chest.v - meniscus, 0.06 + 0.3 * height - chest.above - 0.4 * (chest.outer - chest.depth)), 0.06
        )
        solid(chest, field * chest.half(side), 0.95)


register(
    Finding(
        name="Pleural Effusion",
        count=66401,
        sides=(0.3, 0.3, 0.4),
        causes={"heart failure": 0.55, "infection": 0.15, "collapse": 0.5},
        wording=("{s}{side}pleural effusion", "{side}effusion", "blunting of the {side}costophrenic angle, effusion"),
        paint=_pleural_effusion,
    )
)


def _pleural_other(chest: Chest, case: Case, rng: Rng) -> None:
    """Calcified plaques on the chest wall and on the diaphragm."""
    a = chest.anatomy
    for side in case.sides():
        for _ in range(2 + round(2 * case.severity)):
            on_wall = rng.random() < 0.6
            centre = a.lung_point(
                side, rng.uniform(0.4, 0.85) if on_wall else 0.98, 0.93 if on_wall else rng.uniform(0.3, 0.8)
            )
            radii = (0.028, 0.08) if on_wall else (0.09, 0.022)
            plaque = chest.ellipse(centre, radii, soft=0.4, rough=0.5, rng=rng)
            chest.density += (0.45 + 0.55 * case.severity) * plaque


register(
    Finding(
        name="Pleural Other",
        count=616,
        sides=(0.3, 0.3, 0.4),
        chronic=0.7,
        causes={"asbestos": 0.65},
        wording=("{side}calcified pleural plaques", "{side}pleural plaques", "{side}pleural calcification"),
        paint=_pleural_other,
    )
)


def _pleural_thickening(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    for side in case.sides():
        waves = 0.02 * np.sin(9 * chest.v + rng.uniform(0, 6))
        band = beside_wall(chest, side, 0.03 + 0.05 * case.severity + waves.astype(np.float32))
        lower = ramp(chest.v - np.float32(a.top + rng.uniform(0.1, 0.6) * a.span()), 0.15)
        cap = ramp(a.top + 0.04 + 0.07 * case.severity - chest.v, 0.03) * chest.half(side)
        solid(chest, np.maximum(band * lower, cap), 0.85)


register(
    Finding(
        name="Pleural Thickening",
        count=3272,
        sides=(0.4, 0.4, 0.2),
        chronic=0.7,
        causes={"old infection": 0.3, "asbestos": 0.55},
        wording=("{s}{side}pleural thickening", "{side}apical pleural thickening", "thickened {side}pleura"),
        paint=_pleural_thickening,
    )
)


def _pneumothorax(chest: Chest, case: Case, rng: Rng) -> None:
    space, edge = pneumothorax_space(chest, case.side, 0.05 + 0.24 * case.severity, rng.uniform(0.5, 1.2))
    chest.markings *= 1 - space
    chest.opacify((1 - space) * chest.half(case.side), 0.1 + 0.25 * case.severity)
    chest.aeration += (0.1 + 0.1 * case.severity) * space
    chest.density += (0.2 + 0.2 * case.severity) * edge * chest.lung


register(
    Finding(
        name="Pneumothorax",
        count=13858,
        sides=(0.5, 0.5, 0.0),
        causes={"air leak": 0.7},
        wording=(
            "{s}{side}pneumothorax",
            "{side}apical pneumothorax",
            "{s}{side}pneumothorax with a visible pleural line",
        ),
        paint=_pneumothorax,
    )
)
