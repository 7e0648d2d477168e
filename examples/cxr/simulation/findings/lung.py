"""Diffuse and lobar changes of the lungs."""

from __future__ import annotations

import numpy as np

from cxr.simulation.anatomy import Anatomy
from cxr.simulation.findings.painting import (
    air_bronchograms,
    patch,
    place,
    ring,
    solid,
)
from cxr.simulation.findings.record import Case, Finding, Rng, register
from cxr.simulation.radiograph import SIDES, Chest, Drawing, ramp


def _atelectasis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    for side in case.sides():
        a.raised[side] += 0.06 * case.severity


def _atelectasis(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    for side in case.sides():
        for height in rng.uniform(0.62, 0.95, 1 + round(1.5 * case.severity)):
            depth, tilt = rng.uniform(0.1, 0.35), rng.normal(0, 0.07)
            path = a.lung_point(side, height + tilt * np.linspace(-1, 1, 6), np.linspace(depth, depth + 0.55, 6))
            pen.line(path, 0.022 + 0.022 * case.severity)
        haze = ramp(0.16 - chest.above, 0.25) * chest.half(side)
        chest.opacify(haze, 0.35 * case.severity)
    solid(chest, pen.field(0.01), 0.35 + 0.6 * case.severity)


register(
    Finding(
        name="Atelectasis",
        count=65376,
        sides=(0.3, 0.4, 0.3),
        causes={"infection": 0.15, "collapse": 0.6},
        wording=("{s}{side}basilar atelectasis", "{side}plate-like atelectasis", "{s}{side}subsegmental atelectasis"),
        reshape=_atelectasis_shape,
        paint=_atelectasis,
    )
)


def _consolidation(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = place(chest, side, rng, (0.15, 0.9), (0.3, 0.7))
        field = patch(chest, centre, 0.18 + 0.14 * case.severity, rng, soft=0.5, rough=0.35, mottle=0.2)
        solid(chest, field, 0.65 + 0.35 * case.severity)
        air_bronchograms(chest, side, field, 0.35, rng)


register(
    Finding(
        name="Consolidation",
        count=15371,
        sides=(0.5, 0.4, 0.1),
        causes={"infection": 0.65},
        wording=("{s}{side}consolidation", "dense {side}airspace consolidation", "{side}lung consolidation"),
        paint=_consolidation,
    )
)


def _edema_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.hilum *= 1 + 0.35 * case.severity
    a.vessels *= 1 + 0.8 * case.severity


def _edema(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    for side in SIDES:
        wing = chest.ellipse(a.hilum_point(side, 0.1, 0.04), (0.3, 0.38), soft=1.1)
        chest.opacify(wing * (0.55 + 0.9 * (chest.cloud(0.07, rng) - 0.1)).clip(0, 1), 0.15 + 0.45 * case.severity)
        for height in np.linspace(0.6, 0.97, 6):  # Kerley B lines
            pen.line(a.lung_point(side, height + rng.normal(0, 0.01), np.array([0.84, 0.98])), 0.008)
    chest.density += 0.3 * case.severity * pen.field()


register(
    Finding(
        name="Edema",
        count=37256,
        causes={"heart failure": 0.8},
        wording=("{s}pulmonary edema", "{s}interstitial edema", "{s}vascular congestion and edema"),
        reshape=_edema_shape,
        paint=_edema,
    )
)


def _emphysema_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    s = case.severity
    a.base += 0.06 + 0.1 * s
    a.top -= 0.03 * s
    a.dome *= 1 - 0.7 * s
    a.heart *= 1 - 0.22 * s
    a.gas *= 1 + 0.14 * s
    a.rib_slope *= 1 - 0.5 * s
    a.pruning = max(a.pruning, 0.6 * s)


def _emphysema(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(1 + round(3 * case.severity)):
        centre = place(chest, int(rng.choice(SIDES)), rng, (0.05, 0.5), (0.45, 0.85))
        wall, hole = ring(chest, centre, rng.uniform(0.07, 0.15), 0.014, rng)
        chest.density += 0.2 * wall * chest.lung
        chest.markings *= 1 - hole
        chest.aeration += 0.12 * hole


register(
    Finding(
        name="Emphysema",
        count=3661,
        chronic=0.8,
        causes={"age": 0.35},
        wording=("{s}emphysema", "hyperinflated lungs with emphysema", "emphysematous changes"),
        reshape=_emphysema_shape,
        paint=_emphysema,
    )
)


def _fibrosis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.base -= 0.1 * case.severity


def _fibrosis(chest: Chest, case: Case, rng: Rng) -> None:
    net = ramp(0.05 - np.abs(chest.cloud(0.05, rng) - 0.5), 0.06)  # contour lines of noise look like a net
    edge = ramp(0.16 - (chest.outer - chest.depth), 0.25)
    where = np.maximum(edge * ramp(chest.v - chest.anatomy.arch(), 0.6), ramp(0.2 - chest.above, 0.3))
    chest.density += (0.25 + 0.4 * case.severity) * net * where * chest.lung
    chest.opacify(where, 0.1 + 0.25 * case.severity)


register(
    Finding(
        name="Fibrosis",
        count=1169,
        chronic=0.8,
        causes={"old infection": 0.45, "asbestos": 0.3},
        wording=("{s}pulmonary fibrosis", "reticular opacities of fibrosis", "{s}fibrotic changes at the bases"),
        reshape=_fibrosis_shape,
        paint=_fibrosis,
    )
)


def _infarction(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    height, spread = rng.uniform(0.5, 0.9), 0.11 + 0.08 * case.severity
    wall = a.lung_point(case.side, height + spread * np.linspace(-1, 1, 5), 1.06)
    pen.polygon(np.vstack([wall, a.lung_point(case.side, height - 0.04, 0.62 - 0.3 * case.severity)]))
    solid(chest, pen.field(0.012), 0.65 + 0.35 * case.severity)


register(
    Finding(
        name="Infarction",
        count=727,
        sides=(0.55, 0.45, 0.0),
        causes={"embolism": 0.65},
        wording=("{side}wedge-shaped opacity, infarction", "{side}pulmonary infarction", "peripheral {side}infarct"),
        paint=_infarction,
    )
)


def _infiltration(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        for _ in range(2):
            centre = place(chest, side, rng, (0.1, 0.95), (0.2, 0.8))
            field = patch(chest, centre, rng.uniform(0.14, 0.24), rng, soft=0.8, rough=0.3, mottle=1.4, grain=0.045)
            chest.opacify(field, 0.35 + 0.4 * case.severity)


register(
    Finding(
        name="Infiltration",
        count=10087,
        sides=(0.3, 0.3, 0.4),
        causes={"infection": 0.5, "old infection": 0.4},
        wording=("{s}{side}infiltrates", "patchy {side}infiltration", "{side}lung infiltrate"),
        paint=_infiltration,
    )
)


def _lobar_atelectasis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.shift += 0.09 * case.severity * case.side
    a.raised[case.side] += 0.1 * case.severity


def _lobar_atelectasis(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen, side = chest.anatomy, Drawing(chest), case.side
    if rng.random() < 0.5:  # upper lobe: under the apex, bounded by the fissure pulled up
        low = 0.45 - 0.14 * case.severity
        corners = [(-0.05, 0.0), (-0.05, 1.1), (low - 0.12, 1.02), (low, 0.5), (low + 0.1, -0.25)]
    else:  # lower lobe: a triangle beside the spine
        corners = [(0.5, -0.25), (0.62, 0.05), (1.1, 0.5 - 0.15 * case.severity), (1.15, -0.25)]
    pen.polygon([a.lung_point(side, height, depth) for height, depth in corners])
    field = pen.field(0.008)
    solid(chest, field, 0.75 + 0.25 * case.severity)
    chest.density += 0.12 * field


register(
    Finding(
        name="Lobar Atelectasis",
        count=129,
        sides=(0.5, 0.5, 0.0),
        part_of=("Atelectasis", 0.0),
        wording=("{side}lobar atelectasis", "{side}lobar collapse", "collapse of a {side}lobe"),
        reshape=_lobar_atelectasis_shape,
        paint=_lobar_atelectasis,
    )
)


def _lung_opacity(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = place(chest, side, rng, (0.2, 1.0), (0.2, 0.8))
        field = patch(chest, centre, rng.uniform(0.2, 0.34), rng, soft=0.9, rough=0.15, mottle=0.4)
        chest.opacify(field, 0.25 + 0.5 * case.severity)


register(
    Finding(
        name="Lung Opacity",
        count=77482,
        sides=(0.4, 0.4, 0.2),
        causes={"heart failure": 0.3, "infection": 0.6, "collapse": 0.25},
        wording=("{s}{side}lung opacity", "hazy {side}opacity", "{s}{side}opacification"),
        paint=_lung_opacity,
    )
)


def _pneumonia(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = place(chest, side, rng, (0.35, 0.95), (0.2, 0.75))
        field = patch(chest, centre, 0.14 + 0.11 * case.severity, rng, soft=0.6, rough=0.35, mottle=0.6, grain=0.07)
        chest.opacify(field, 0.45 + 0.45 * case.severity)
        air_bronchograms(chest, side, field, 0.2, rng)


register(
    Finding(
        name="Pneumonia",
        count=46660,
        sides=(0.45, 0.4, 0.15),
        causes={"infection": 0.75},
        wording=("{side}pneumonia", "{side}opacity concerning for pneumonia", "{s}{side}multifocal pneumonia"),
        paint=_pneumonia,
    )
)


def _pulmonary_embolism(chest: Chest, case: Case, rng: Rng) -> None:
    """Westermark's sign (a dark region without vessels) and a wide artery before it."""
    a = chest.anatomy
    centre = a.lung_point(case.side, rng.choice([0.25, 0.7]), 0.6)
    region = chest.ellipse(centre, (0.26, 0.3), soft=0.5)
    chest.markings *= 1 - region
    chest.aeration += (0.08 + 0.16 * case.severity) * region
    artery = chest.ellipse(a.hilum_point(case.side, 0.04, 0.02), (0.06, 0.11), angle=0.5 * case.side, soft=0.3)
    solid(chest, artery, 0.5 + 0.4 * case.severity)


register(
    Finding(
        name="Pulmonary Embolism",
        count=1631,
        sides=(0.5, 0.5, 0.0),
        causes={"embolism": 0.65},
        wording=("{side}oligemia, suspicious for pulmonary embolism", "{side}pulmonary embolism"),
        paint=_pulmonary_embolism,
    )
)


def _tuberculosis(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = place(chest, side, rng, (0.1, 0.3), (0.35, 0.65))
        field = patch(chest, centre, 0.15 + 0.06 * case.severity, rng, soft=0.7, rough=0.4, mottle=1.2, grain=0.05)
        chest.opacify(field, 0.4 + 0.4 * case.severity)
        wall, hole = ring(chest, centre, 0.05 + 0.03 * case.severity, 0.025, rng)
        chest.density += 0.4 * wall * chest.lung
        chest.aeration += 0.3 * hole * (1 - chest.aeration.clip(0, 1))
        for _ in range(6):
            spot = chest.ellipse(place(chest, side, rng, (0.05, 0.55), (0.2, 0.85)), (0.022, 0.022), soft=0.5)
            chest.density += 0.35 * case.severity * spot * chest.lung


register(
    Finding(
        name="Tuberculosis",
        count=2078,
        sides=(0.4, 0.3, 0.3),
        chronic=0.7,
        causes={"old infection": 0.75},
        wording=("{side}upper lobe tuberculosis", "{side}cavitary opacities, tuberculosis", "findings of tuberculosis"),
        paint=_tuberculosis,
    )
)
