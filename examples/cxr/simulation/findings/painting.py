"""What several findings are painted with."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cxr.simulation.anatomy import Floats
from cxr.simulation.findings.record import Rng
from cxr.simulation.radiograph import Chest, Drawing, ramp


def place(chest: Chest, side: int, rng: Rng, heights: tuple[float, float], depths: tuple[float, float]) -> ArrayLike:
    """A random point of a lung."""
    return chest.anatomy.lung_point(side, rng.uniform(*heights), rng.uniform(*depths))


def patch(
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


def solid(chest: Chest, field: Floats, amount: float) -> None:
    """Tissue inside the lung, a little denser than what surrounds it."""
    chest.opacify(field, amount)
    chest.density += np.float32(0.1 * amount) * field * chest.lung * (1 - chest.mediastinum)


def air_bronchograms(chest: Chest, side: int, field: Floats, strength: float, rng: Rng) -> None:
    """Branches of air within a consolidated lung."""
    pen = Drawing(chest)
    start = chest.anatomy.hilum_point(side)
    for angle in rng.uniform(-1.2, 1.2, 5):
        step = np.array([side * np.cos(angle), np.sin(angle)])
        pen.line(start + np.linspace(0.05, 0.5, 5)[:, None] * step, 0.016)
    chest.density -= np.float32(strength) * pen.field(0.005) * field * chest.lung


def ring(chest: Chest, centre: ArrayLike, radius: float, wall: float, rng: Rng) -> tuple[Floats, Floats]:
    """Wall and cavity of a round hole."""
    outer = chest.ellipse(centre, (radius, radius), soft=0.2, rough=0.15, rng=rng)
    inner = chest.ellipse(centre, (radius - wall, radius - wall), soft=0.3)
    return np.clip(outer - inner, 0, 1), inner


def beside_wall(chest: Chest, side: int, thickness: Floats | float) -> Floats:
    """A band of the lung along the lateral chest wall."""
    return ramp(thickness - (chest.outer - chest.depth), 0.025) * chest.half(side)


def pneumothorax_space(chest: Chest, side: int, gap: float, tilt: float) -> tuple[Floats, Floats]:
    """The space outside a collapsed lung, wider at the apex, and the lung's edge."""
    a = chest.anatomy
    t = (chest.v - a.top) / a.span()
    lateral, apical = (chest.outer - chest.depth).clip(0.001), (chest.v - np.float32(a.top)).clip(0.001)
    inwards = lateral * apical / np.hypot(lateral, apical) - gap * np.clip(1.2 - tilt * t, 0.1, None)
    half = chest.half(side)
    return ramp(-inwards, 0.02) * half, np.exp(-((inwards / 0.012) ** 2)) * half
