"""What each of the 40 findings of CXR-LT 2024 looks like on a simulated radiograph.

A finding may change the anatomy before the chest is laid out (`RESHAPE`: a large heart) and the chest before the film
is exposed (`PAINT`: a nodule). `case.severity` runs from barely visible to gross.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from cxr.simulation.anatomy import LEFT, RIGHT, Anatomy, Floats, View
from cxr.simulation.hardware import draw_devices, smooth_path
from cxr.simulation.radiograph import SIDES, Chest, Drawing, break_index, posterior_ribs, ramp

Rng = np.random.Generator
BOTH = 0


@dataclass(frozen=True)
class Case:
    """One finding of one study.

    Attributes:
        name: one of ``LABELS``.
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


# Chance of (right, left, both); a finding without an entry has no side.
SIDEDNESS: dict[str, tuple[float, float, float]] = {
    "Adenopathy": (0.35, 0.25, 0.4), "Atelectasis": (0.3, 0.4, 0.3), "Clavicle Fracture": (0.5, 0.5, 0.0),
    "Consolidation": (0.5, 0.4, 0.1), "Fracture": (0.5, 0.5, 0.0), "Granuloma": (0.5, 0.5, 0.0),
    "Hydropneumothorax": (0.5, 0.5, 0.0), "Infarction": (0.55, 0.45, 0.0), "Infiltration": (0.3, 0.3, 0.4),
    "Lobar Atelectasis": (0.5, 0.5, 0.0), "Lung Lesion": (0.5, 0.5, 0.0), "Lung Opacity": (0.4, 0.4, 0.2),
    "Mass": (0.5, 0.5, 0.0), "Nodule": (0.5, 0.5, 0.0), "Pleural Effusion": (0.3, 0.3, 0.4),
    "Pleural Other": (0.3, 0.3, 0.4), "Pleural Thickening": (0.4, 0.4, 0.2), "Pneumonia": (0.45, 0.4, 0.15),
    "Pneumothorax": (0.5, 0.5, 0.0), "Pulmonary Embolism": (0.5, 0.5, 0.0), "Rib Fracture": (0.5, 0.5, 0.0),
    "Round(ed) Atelectasis": (0.5, 0.5, 0.0), "Subcutaneous Emphysema": (0.35, 0.35, 0.3),
    "Tuberculosis": (0.4, 0.3, 0.3),
}  # fmt: skip


def draw_case(name: str, rng: Rng) -> Case:
    """A finding of random severity, side and place."""
    rates = SIDEDNESS.get(name)
    side = BOTH if rates is None else int(rng.choice([RIGHT, LEFT, BOTH], p=rates))
    return Case(name, 0.15 + 0.85 * float(rng.beta(1.7, 1.4)), side, int(rng.integers(2**31)))


def render_chest(anatomy: Anatomy, view: View, cases: list[Case], image_size: int) -> Chest:
    """Lay out a chest with its findings, ready for the film. `anatomy` is changed by the findings."""
    for case in cases:
        if case.name in RESHAPE:
            RESHAPE[case.name](anatomy, case, np.random.default_rng([case.seed, 0]))
    chest = Chest(anatomy, view, image_size)
    named = {case.name for case in cases}
    for case in cases:
        told_by_part = case.name == "Fracture" and named & {"Rib Fracture", "Clavicle Fracture"}
        if case.name in PAINT and not told_by_part:
            PAINT[case.name](chest, case, np.random.default_rng([case.seed, 1]))
    return chest


# --- the anatomy changes ---------------------------------------------------------------------------------------------


def _atelectasis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    for side in case.sides():
        a.raised[side] += 0.06 * case.severity


def _cardiomegaly_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.heart *= 1.12 + 0.38 * case.severity


def _clavicle_fracture_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.clavicle_break[case.side] = 0.06 + 0.1 * case.severity


def _rib_fracture_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    first, n = int(rng.integers(2, 7)), 2 + round(2 * case.severity)
    where = rng.uniform(0.4, 0.8)
    for rib in range(first, min(first + n, 10)):
        a.rib_breaks.append((case.side, rib, float(where + rng.normal(0, 0.03)), 0.045 + 0.05 * case.severity))


def _edema_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.hilum *= 1 + 0.35 * case.severity
    a.vessels *= 1 + 0.8 * case.severity


def _emphysema_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    s = case.severity
    a.base += 0.06 + 0.1 * s
    a.top -= 0.03 * s
    a.dome *= 1 - 0.7 * s
    a.heart *= 1 - 0.22 * s
    a.gas *= 1 + 0.14 * s
    a.rib_slope *= 1 - 0.5 * s
    a.pruning = max(a.pruning, 0.6 * s)


def _enlarged_cardiomediastinum_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.widening += 0.025 + 0.085 * case.severity


def _fibrosis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.base -= 0.1 * case.severity


def _kyphosis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    s = case.severity
    a.rib_spacing *= 1 - 0.2 * s
    a.rib_slope += 0.3 * s
    a.base -= 0.1 * s
    a.clavicle -= 0.1 * s
    a.widening += 0.02 * s


def _lobar_atelectasis_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.shift += 0.09 * case.severity * case.side
    a.raised[case.side] += 0.1 * case.severity


def _pulmonary_hypertension_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.trunk += 0.03 + 0.05 * case.severity
    a.hilum *= 1.3 + 0.7 * case.severity
    a.pruning = max(a.pruning, 0.9 * case.severity)


def _tortuous_aorta_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.tortuosity += 0.09 + 0.13 * case.severity
    a.knob += 0.02 * case.severity


# --- helpers ---------------------------------------------------------------------------------------------------------


def _place(chest: Chest, side: int, rng: Rng, heights: tuple[float, float], depths: tuple[float, float]) -> ArrayLike:
    """A random point of a lung."""
    return chest.anatomy.lung_point(side, rng.uniform(*heights), rng.uniform(*depths))


def _patch(
    chest: Chest,
    centre: ArrayLike,
    radius: float,
    rng: Rng,
    *,
    soft: float,
    rough: float,
    mottle: float,
    grain: float = 0.1,
) -> Floats:
    """An ill-defined blob: `mottle` is how uneven it is."""
    radii = (radius * rng.uniform(0.8, 1.1), radius * rng.uniform(0.9, 1.3))
    blob = chest.ellipse(centre, radii, angle=rng.uniform(-0.6, 0.6), soft=soft, rough=rough, rng=rng)
    return blob * np.clip(1 + 2 * mottle * (chest.cloud(grain, rng) - 0.5), 0, 1) if mottle else blob


def _solid(chest: Chest, field: Floats, amount: float) -> None:
    """Tissue inside the lung, a little denser than what surrounds it."""
    chest.opacify(field, amount)
    chest.density += np.float32(0.1 * amount) * field * chest.lung * (1 - chest.mediastinum)


def _air_bronchograms(chest: Chest, side: int, field: Floats, strength: float, rng: Rng) -> None:
    pen = Drawing(chest)
    start = chest.anatomy.hilum_point(side)
    for angle in rng.uniform(-1.2, 1.2, 5):
        step = np.array([side * np.cos(angle), np.sin(angle)])
        pen.line(start + np.linspace(0.05, 0.5, 5)[:, None] * step, 0.016)
    chest.density -= np.float32(strength) * pen.field(0.005) * field * chest.lung


def _ring(chest: Chest, centre: ArrayLike, radius: float, wall: float, rng: Rng) -> tuple[Floats, Floats]:
    """Wall and cavity of a round hole."""
    outer = chest.ellipse(centre, (radius, radius), soft=0.2, rough=0.15, rng=rng)
    inner = chest.ellipse(centre, (radius - wall, radius - wall), soft=0.3)
    return np.clip(outer - inner, 0, 1), inner


def _beside_wall(chest: Chest, side: int, thickness: Floats | float) -> Floats:
    """A band of the lung along the lateral chest wall."""
    return ramp(thickness - (chest.outer - chest.depth), 0.025) * chest.half(side)


# --- the chest changes -----------------------------------------------------------------------------------------------


def _adenopathy(chest: Chest, case: Case, rng: Rng) -> None:
    a, size = chest.anatomy, 0.05 + 0.05 * case.severity
    nodes = [np.array([-0.12 + a.shift, a.arch() - 0.06])]
    for side in case.sides():
        nodes += [a.hilum_point(side, du, dv) for du, dv in ((0.03, -0.06), (0.05, 0.03), (0.02, 0.1))]
    for centre in nodes:
        field = chest.ellipse(centre + rng.normal(0, 0.01, 2), (size, 1.15 * size), soft=0.3)
        _solid(chest, field, 0.9)


def _atelectasis(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    for side in case.sides():
        for height in rng.uniform(0.62, 0.95, 1 + round(1.5 * case.severity)):
            depth, tilt = rng.uniform(0.1, 0.35), rng.normal(0, 0.07)
            path = a.lung_point(side, height + tilt * np.linspace(-1, 1, 6), np.linspace(depth, depth + 0.55, 6))
            pen.line(path, 0.022 + 0.022 * case.severity)
        haze = ramp(0.16 - chest.above, 0.25) * chest.half(side)
        chest.opacify(haze, 0.35 * case.severity)
    _solid(chest, pen.field(0.01), 0.35 + 0.6 * case.severity)


def _azygos_lobe(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    bulge = rng.uniform(0.55, 0.8)
    heights, depths = [0.0, 0.14, 0.3, 0.36], [0.6, bulge, 0.45, 0.08]
    path = smooth_path([tuple(a.lung_point(RIGHT, h, d)) for h, d in zip(heights, depths)])
    pen.line(path, 0.012 + 0.01 * case.severity)
    vein = chest.ellipse(path[-1], (0.028, 0.045), soft=0.3)
    chest.density += (0.4 + 0.3 * case.severity) * np.maximum(pen.field(0.003), vein)
    chest.opacify(chest.ellipse(a.lung_point(RIGHT, 0.15, 0.2), (0.11, 0.2), soft=0.5), 0.2 * case.severity)


def _aortic_calcification(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    turn = np.linspace(-1.9, rng.uniform(0.5, 1.2), 14)
    radius = (a.knob + 0.3 * a.tortuosity) * 0.95
    centre = (a.shift + 0.06 + 0.5 * a.widening + float(a.midline(a.arch())), a.arch())
    pen.line(np.stack([centre[0] + radius * np.cos(turn), centre[1] + radius * np.sin(turn)], axis=1), 0.02)
    chest.density += (0.5 + 0.9 * case.severity) * pen.field(0.003)


def _consolidation(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = _place(chest, side, rng, (0.15, 0.9), (0.3, 0.7))
        field = _patch(chest, centre, 0.18 + 0.14 * case.severity, rng, soft=0.5, rough=0.35, mottle=0.2)
        _solid(chest, field, 0.65 + 0.35 * case.severity)
        _air_bronchograms(chest, side, field, 0.35, rng)


def _edema(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    for side in SIDES:
        wing = chest.ellipse(a.hilum_point(side, 0.1, 0.04), (0.3, 0.38), soft=1.1)
        chest.opacify(wing * (0.55 + 0.9 * (chest.cloud(0.07, rng) - 0.1)).clip(0, 1), 0.15 + 0.45 * case.severity)
        for height in np.linspace(0.6, 0.97, 6):  # Kerley B lines
            pen.line(a.lung_point(side, height + rng.normal(0, 0.01), np.array([0.84, 0.98])), 0.008)
    chest.density += 0.3 * case.severity * pen.field()


def _emphysema(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(1 + round(3 * case.severity)):
        centre = _place(chest, int(rng.choice(SIDES)), rng, (0.05, 0.5), (0.45, 0.85))
        wall, hole = _ring(chest, centre, rng.uniform(0.07, 0.15), 0.014, rng)
        chest.density += 0.2 * wall * chest.lung
        chest.markings *= 1 - hole
        chest.aeration += 0.12 * hole


def _fibrosis(chest: Chest, case: Case, rng: Rng) -> None:
    net = ramp(0.05 - np.abs(chest.cloud(0.05, rng) - 0.5), 0.06)  # contour lines of noise look like a net
    edge = ramp(0.16 - (chest.outer - chest.depth), 0.25)
    where = np.maximum(edge * ramp(chest.v - chest.anatomy.arch(), 0.6), ramp(0.2 - chest.above, 0.3))
    chest.density += (0.25 + 0.4 * case.severity) * net * where * chest.lung
    chest.opacify(where, 0.1 + 0.25 * case.severity)


def _fissure(chest: Chest, case: Case, rng: Rng) -> None:
    pen = Drawing(chest)
    height, sag = rng.uniform(0.46, 0.56), rng.normal(0.0, 0.03)
    q = np.linspace(0, 1, 10)
    pen.line(
        chest.anatomy.lung_point(RIGHT, height + sag * np.sin(np.pi * q) + 0.03 * q, 0.12 + 0.88 * q),
        0.02 + 0.022 * case.severity,
    )
    _solid(chest, pen.field(0.004), 0.6 + 0.4 * case.severity)


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


def _granuloma(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 4))):
        radius = 0.017 + 0.016 * case.severity
        spot = chest.ellipse(_place(chest, case.side, rng, (0.1, 0.85), (0.2, 0.8)), (radius, radius), soft=0.4)
        chest.density += (0.8 + 0.8 * case.severity) * spot


def _hernia(chest: Chest, case: Case, rng: Rng) -> None:
    a, radius = chest.anatomy, 0.11 + 0.1 * case.severity
    centre = np.array([a.shift + rng.uniform(-0.02, 0.1), a.base - 0.55 * radius - 0.04])
    sac = chest.ellipse(centre, (radius * 1.15, radius), soft=0.15)
    gas = chest.ellipse(centre, (radius * 1.0, radius * 0.85), soft=0.2) * ramp(centre[1] + 0.02 - chest.v, 0.02)
    chest.opacify(sac, 0.7)
    chest.density += (0.15 * sac - (0.5 + 0.3 * case.severity) * gas) * chest.body


def _pneumothorax_space(chest: Chest, side: int, gap: float, tilt: float) -> tuple[Floats, Floats]:
    """The space outside a collapsed lung, wider at the apex, and the lung's edge."""
    a = chest.anatomy
    t = (chest.v - a.top) / a.span()
    lateral, apical = (chest.outer - chest.depth).clip(0.001), (chest.v - np.float32(a.top)).clip(0.001)
    inwards = lateral * apical / np.hypot(lateral, apical) - gap * np.clip(1.2 - tilt * t, 0.1, None)
    half = chest.half(side)
    return ramp(-inwards, 0.02) * half, np.exp(-((inwards / 0.012) ** 2)) * half


def _hydropneumothorax(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    level = a.base - a.span() * (0.1 + 0.3 * case.severity)
    space, edge = _pneumothorax_space(chest, case.side, 0.12 + 0.16 * case.severity, 0.4)
    chest.markings *= 1 - space
    chest.aeration += 0.15 * space
    chest.density += 0.3 * edge * chest.lung * (chest.v < level)
    fluid = ramp(chest.v - np.float32(level), 0.012) * chest.half(case.side)
    _solid(chest, fluid, 0.97)


def _infarction(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    height, spread = rng.uniform(0.5, 0.9), 0.11 + 0.08 * case.severity
    wall = a.lung_point(case.side, height + spread * np.linspace(-1, 1, 5), 1.06)
    pen.polygon(np.vstack([wall, a.lung_point(case.side, height - 0.04, 0.62 - 0.3 * case.severity)]))
    _solid(chest, pen.field(0.012), 0.65 + 0.35 * case.severity)


def _infiltration(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        for _ in range(2):
            centre = _place(chest, side, rng, (0.1, 0.95), (0.2, 0.8))
            field = _patch(chest, centre, rng.uniform(0.14, 0.24), rng, soft=0.8, rough=0.3, mottle=1.4, grain=0.045)
            chest.opacify(field, 0.35 + 0.4 * case.severity)


def _kyphosis(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    chin = chest.ellipse((a.shift * 0.5, a.top - 0.16), (0.26, 0.2 + 0.12 * case.severity), soft=0.35)
    chest.density += (0.35 + 0.5 * case.severity) * chin
    hump = ramp(0.11 - chest.depth, 0.06) * ramp(chest.v - a.top, 0.2)
    chest.density += 0.3 * case.severity * hump * chest.lung


def _lobar_atelectasis(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen, side = chest.anatomy, Drawing(chest), case.side
    if rng.random() < 0.5:  # upper lobe: under the apex, bounded by the fissure pulled up
        low = 0.45 - 0.14 * case.severity
        corners = [(-0.05, 0.0), (-0.05, 1.1), (low - 0.12, 1.02), (low, 0.5), (low + 0.1, -0.25)]
    else:  # lower lobe: a triangle beside the spine
        corners = [(0.5, -0.25), (0.62, 0.05), (1.1, 0.5 - 0.15 * case.severity), (1.15, -0.25)]
    pen.polygon([a.lung_point(side, height, depth) for height, depth in corners])
    field = pen.field(0.008)
    _solid(chest, field, 0.75 + 0.25 * case.severity)
    chest.density += 0.12 * field


def _lung_lesion(chest: Chest, case: Case, rng: Rng) -> None:
    centre = np.asarray(_place(chest, case.side, rng, (0.15, 0.85), (0.3, 0.75)))
    radius = 0.065 + 0.06 * case.severity
    wall, hole = _ring(chest, centre, radius, 0.55 * radius, rng)
    pen = Drawing(chest)
    for angle in rng.uniform(0, 2 * np.pi, 9):  # spicules
        step = np.array([np.cos(angle), np.sin(angle)])
        pen.line(centre + np.outer([0.9 * radius, radius * rng.uniform(1.4, 1.9)], step), 0.012, 0.8)
    _solid(chest, np.maximum(wall, 0.6 * pen.field(0.003)), 0.5 + 0.4 * case.severity)
    chest.markings *= 1 - hole


def _lung_opacity(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = _place(chest, side, rng, (0.2, 1.0), (0.2, 0.8))
        field = _patch(chest, centre, rng.uniform(0.2, 0.34), rng, soft=0.9, rough=0.15, mottle=0.4)
        chest.opacify(field, 0.25 + 0.5 * case.severity)


def _mass(chest: Chest, case: Case, rng: Rng) -> None:
    radius = 0.1 + 0.07 * case.severity
    centre = _place(chest, case.side, rng, (0.15, 0.85), (0.2, 0.8))
    field = _patch(chest, centre, radius, rng, soft=0.2, rough=0.12, mottle=0.0)
    _solid(chest, field, 0.7 + 0.3 * case.severity)
    chest.density += 0.1 * field * chest.lung


def _nodule(chest: Chest, case: Case, rng: Rng) -> None:
    for _ in range(int(rng.choice([1, 1, 2, 4]))):
        radius = (0.03 + 0.022 * case.severity) * rng.uniform(0.85, 1.15)
        spot = chest.ellipse(_place(chest, case.side, rng, (0.1, 0.9), (0.2, 0.85)), (radius, radius), soft=0.35)
        _solid(chest, spot, 0.55 + 0.45 * case.severity)


def _pleural_effusion(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        height = (0.03 + 0.42 * case.severity**1.5) * rng.uniform(0.6, 1.0)
        meniscus = chest.anatomy.base - height * (0.35 + 0.9 * np.clip(chest.depth / chest.outer.clip(0.1), 0, 1) ** 3)
        field = ramp(
            np.maximum(chest.v - meniscus, 0.06 + 0.3 * height - chest.above - 0.4 * (chest.outer - chest.depth)), 0.06
        )
        _solid(chest, field * chest.half(side), 0.95)


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


def _pleural_thickening(chest: Chest, case: Case, rng: Rng) -> None:
    a = chest.anatomy
    for side in case.sides():
        waves = 0.02 * np.sin(9 * chest.v + rng.uniform(0, 6))
        band = _beside_wall(chest, side, 0.03 + 0.05 * case.severity + waves.astype(np.float32))
        lower = ramp(chest.v - np.float32(a.top + rng.uniform(0.1, 0.6) * a.span()), 0.15)
        cap = ramp(a.top + 0.04 + 0.07 * case.severity - chest.v, 0.03) * chest.half(side)
        _solid(chest, np.maximum(band * lower, cap), 0.85)


def _pneumomediastinum(chest: Chest, case: Case, rng: Rng) -> None:
    """Gas along the borders of heart and mediastinum, the lifted pleura as a fine line, streaks into the neck."""
    width = 0.035 * chest.scale
    blurred = gaussian_filter(chest.mediastinum, width)
    upper = ramp(chest.anatomy.base - 0.1 - chest.v, 0.2)
    gas = np.clip(3 * blurred * (1 - blurred) - 0.3, 0, 1) * chest.mediastinum * upper
    line = np.exp(-(((blurred - 0.12) / 0.06) ** 2)) * chest.lung * upper
    pen = Drawing(chest)
    for side in SIDES:
        for offset in (0.05, 0.085, 0.12):
            u = side * (offset + rng.uniform(-0.012, 0.012))
            pen.line(
                smooth_path([(u * 1.3, -1.3), (u * 1.2, chest.anatomy.top - 0.1), (u, chest.anatomy.arch())]), 0.02
            )
    chest.density += (0.4 + 0.5 * case.severity) * (0.55 * line - 1.1 * gas - 0.6 * pen.field(0.004)) * chest.body


def _pneumonia(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = _place(chest, side, rng, (0.35, 0.95), (0.2, 0.75))
        field = _patch(chest, centre, 0.14 + 0.11 * case.severity, rng, soft=0.6, rough=0.35, mottle=0.6, grain=0.07)
        chest.opacify(field, 0.45 + 0.45 * case.severity)
        _air_bronchograms(chest, side, field, 0.2, rng)


def _pneumoperitoneum(chest: Chest, case: Case, rng: Rng) -> None:
    depth = 0.03 + 0.07 * case.severity
    for side in SIDES if rng.random() < 0.4 else (RIGHT,):
        arc = ramp(-chest.above - 0.025, 0.015) * ramp(chest.above + 0.025 + depth, 0.02)
        arc = arc * ramp(0.24 - np.abs(chest.depth - 0.32), 0.15) * chest.half(side)
        chest.density -= (0.7 + 0.7 * case.severity) * arc


def _pneumothorax(chest: Chest, case: Case, rng: Rng) -> None:
    space, edge = _pneumothorax_space(chest, case.side, 0.05 + 0.24 * case.severity, rng.uniform(0.5, 1.2))
    chest.markings *= 1 - space
    chest.opacify((1 - space) * chest.half(case.side), 0.1 + 0.25 * case.severity)
    chest.aeration += (0.1 + 0.1 * case.severity) * space
    chest.density += (0.2 + 0.2 * case.severity) * edge * chest.lung


def _pulmonary_embolism(chest: Chest, case: Case, rng: Rng) -> None:
    """Westermark's sign (a dark region without vessels) and a wide artery before it."""
    a = chest.anatomy
    centre = a.lung_point(case.side, rng.choice([0.25, 0.7]), 0.6)
    region = chest.ellipse(centre, (0.26, 0.3), soft=0.5)
    chest.markings *= 1 - region
    chest.aeration += (0.08 + 0.16 * case.severity) * region
    artery = chest.ellipse(a.hilum_point(case.side, 0.04, 0.02), (0.06, 0.11), angle=0.5 * case.side, soft=0.3)
    _solid(chest, artery, 0.5 + 0.4 * case.severity)


def _rib_fracture(chest: Chest, case: Case, rng: Rng) -> None:
    """Callus where the ribs broke and a little haze around it."""
    ribs = posterior_ribs(chest.anatomy, case.side)
    for side, rib, where, step in chest.anatomy.rib_breaks:
        if side == case.side:
            centre = ribs[rib, break_index(where)] + np.array([0.0, 0.5 * step])
            chest.density += (0.3 + 0.5 * case.severity) * chest.ellipse(centre, (0.032, 0.045), soft=0.6) * chest.body
            chest.opacify(chest.ellipse(centre, (0.12, 0.12), soft=1.2), 0.1 + 0.15 * case.severity)


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
    _solid(chest, chest.ellipse(centre, (radius, 0.9 * radius), soft=0.2), 0.8 + 0.2 * case.severity)
    _solid(chest, 0.7 * tail.field(0.004), 0.7)
    near = ramp(0.2 - np.abs(chest.v - np.float32(centre[1])), 0.1)
    _solid(chest, _beside_wall(chest, side, 0.045) * near, 0.8)


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


def _support_devices(chest: Chest, case: Case, rng: Rng) -> None:
    draw_devices(chest, case.severity, rng)


def _tuberculosis(chest: Chest, case: Case, rng: Rng) -> None:
    for side in case.sides():
        centre = _place(chest, side, rng, (0.1, 0.3), (0.35, 0.65))
        field = _patch(chest, centre, 0.15 + 0.06 * case.severity, rng, soft=0.7, rough=0.4, mottle=1.2, grain=0.05)
        chest.opacify(field, 0.4 + 0.4 * case.severity)
        wall, hole = _ring(chest, centre, 0.05 + 0.03 * case.severity, 0.025, rng)
        chest.density += 0.4 * wall * chest.lung
        chest.aeration += 0.3 * hole * (1 - chest.aeration.clip(0, 1))
        for _ in range(6):
            spot = chest.ellipse(_place(chest, side, rng, (0.05, 0.55), (0.2, 0.85)), (0.022, 0.022), soft=0.5)
            chest.density += 0.35 * case.severity * spot * chest.lung


RESHAPE: dict[str, Callable[[Anatomy, Case, Rng], None]] = {
    "Atelectasis": _atelectasis_shape,
    "Cardiomegaly": _cardiomegaly_shape,
    "Clavicle Fracture": _clavicle_fracture_shape,
    "Edema": _edema_shape,
    "Emphysema": _emphysema_shape,
    "Enlarged Cardiomediastinum": _enlarged_cardiomediastinum_shape,
    "Fibrosis": _fibrosis_shape,
    "Kyphosis": _kyphosis_shape,
    "Lobar Atelectasis": _lobar_atelectasis_shape,
    "Pulmonary Hypertension": _pulmonary_hypertension_shape,
    "Rib Fracture": _rib_fracture_shape,
    "Tortuous Aorta": _tortuous_aorta_shape,
}
PAINT: dict[str, Callable[[Chest, Case, Rng], None]] = {
    "Adenopathy": _adenopathy,
    "Atelectasis": _atelectasis,
    "Azygos Lobe": _azygos_lobe,
    "Calcification of the Aorta": _aortic_calcification,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Fissure": _fissure,
    "Fracture": _fracture,
    "Granuloma": _granuloma,
    "Hernia": _hernia,
    "Hydropneumothorax": _hydropneumothorax,
    "Infarction": _infarction,
    "Infiltration": _infiltration,
    "Kyphosis": _kyphosis,
    "Lobar Atelectasis": _lobar_atelectasis,
    "Lung Lesion": _lung_lesion,
    "Lung Opacity": _lung_opacity,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pleural Effusion": _pleural_effusion,
    "Pleural Other": _pleural_other,
    "Pleural Thickening": _pleural_thickening,
    "Pneumomediastinum": _pneumomediastinum,
    "Pneumonia": _pneumonia,
    "Pneumoperitoneum": _pneumoperitoneum,
    "Pneumothorax": _pneumothorax,
    "Pulmonary Embolism": _pulmonary_embolism,
    "Rib Fracture": _rib_fracture,
    "Round(ed) Atelectasis": _rounded_atelectasis,
    "Subcutaneous Emphysema": _subcutaneous_emphysema,
    "Support Devices": _support_devices,
    "Tuberculosis": _tuberculosis,
}
