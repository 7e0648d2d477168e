"""Tubes, lines, wires and pacemakers on a simulated radiograph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cxr.simulation.anatomy import LEFT, RIGHT
from cxr.simulation.radiograph import Chest, Drawing

Points = NDArray[np.floating]


def smooth_path(corners: list[tuple[float, float]], n: int = 16) -> Points:
    """A smooth curve (n, 2) near the given corners (a Bézier curve)."""
    points = np.asarray(corners, dtype=float)[:, None, :] * np.ones((1, n, 1))
    t = np.linspace(0, 1, n)[None, :, None]
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


def _endotracheal_tube(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    tip = a.arch() + rng.uniform(-0.12, 0.06)
    pen.line(smooth_path([(rng.normal(0, 0.03), -1.4), (0.0, a.top), (0.5 * a.shift, tip)]), 0.022, 0.8)


def _feeding_tube(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    stomach = (rng.uniform(0.1, 0.35), a.base + rng.uniform(0.15, 0.35))
    pen.line(smooth_path([(0.02, -1.4), (0.02, 0.0), (0.0, a.base), (0.05, a.base + 0.2), stomach]), 0.014, 0.8)


def _central_line(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    side = int(rng.choice([RIGHT, LEFT]))
    tip = (-0.08 + a.shift, a.arch() + rng.uniform(0.02, 0.22))
    if rng.random() < 0.5:  # through the neck, or from the arm under the clavicle
        path = [(side * 0.16, -1.2), (side * 0.12, a.top), (-0.1, a.arch() - 0.2), tip]
    else:
        path = [
            (side * 1.1, a.top + 0.4),
            (side * 0.6, a.clavicle),
            (0.05 * side, a.clavicle + 0.02),
            (-0.1, a.arch()),
            tip,
        ]
    pen.line(smooth_path(path), 0.013, 0.75)


def _pacemaker(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    side = LEFT if rng.random() < 0.85 else RIGHT
    u, v = side * rng.uniform(0.42, 0.56), a.clavicle + rng.uniform(0.08, 0.2)
    turn = np.linspace(0, 2 * np.pi, 20)
    pen.polygon(np.stack([u + 0.085 * np.cos(turn), v + 0.075 * np.sin(turn)], axis=1))
    for depth in rng.uniform(0.1, 0.75, rng.integers(1, 4)):
        end = (a.shift + depth * a.heart * 1.2, a.base - rng.uniform(0.02, 0.2))
        pen.line(
            smooth_path([(u, v), (side * 0.3, a.clavicle), (-0.12, a.arch() - 0.15), (-0.16, a.base - 0.15), end]),
            0.013,
        )


def _chest_tube(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    side = int(rng.choice([RIGHT, LEFT]))
    tip = tuple(a.lung_point(side, rng.uniform(0.05, 0.4), rng.uniform(0.3, 0.7)))
    entry = a.lung_point(side, rng.uniform(0.65, 0.9), 1.0)
    pen.line(
        smooth_path([(entry[0] + 0.3 * side, entry[1] + 0.15), tuple(entry), (side * 0.4, entry[1] - 0.2), tip]),
        0.026,
        0.7,
    )


def _sternotomy(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    for v in a.arch() - 0.12 + 0.12 * np.arange(rng.integers(4, 7)):
        u = a.shift + rng.normal(0, 0.008)
        turn = np.linspace(0, 2 * np.pi, 10)
        pen.line(np.stack([u + 0.03 * np.cos(turn), v + 0.016 * np.sin(turn)], axis=1), 0.011)
    if rng.random() < 0.4:  # a valve prosthesis
        turn = np.linspace(0, 2 * np.pi, 14)
        u, v = a.shift + 0.25 * a.heart, a.base - 1.1 * a.heart
        pen.line(np.stack([u + 0.05 * np.cos(turn), v + 0.03 * np.sin(turn)], axis=1), 0.016)


def _electrodes(chest: Chest, pen: Drawing, rng: np.random.Generator) -> None:
    a = chest.anatomy
    for side in (RIGHT, LEFT):
        for height in rng.uniform([0.0, 0.7], [0.3, 1.0])[: rng.integers(1, 3)]:
            u, v = a.lung_point(side, height, rng.uniform(0.5, 1.1))
            turn = np.linspace(0, 2 * np.pi, 10)
            pen.polygon(np.stack([u + 0.026 * np.cos(turn), v + 0.026 * np.sin(turn)], axis=1), 0.9)
            pen.line(
                smooth_path([(u, v), (u - 0.2 * side, v + 0.3), (u + 0.1 * side, 0.6), (0.5 * side, 1.4)]), 0.01, 0.55
            )


# name in reports → (how to draw it, how common it is)
DEVICES = {
    "endotracheal tube": (_endotracheal_tube, 0.2),
    "enteric tube": (_feeding_tube, 0.2),
    "central venous catheter": (_central_line, 0.45),
    "pacemaker": (_pacemaker, 0.2),
    "chest tube": (_chest_tube, 0.12),
    "median sternotomy wires": (_sternotomy, 0.25),
    "monitoring leads": (_electrodes, 0.35),
}


def choose_devices(rng: np.random.Generator) -> list[str]:
    """At least one device."""
    rates = np.array([rate for _, rate in DEVICES.values()])
    chosen = rng.random(len(rates)) < rates
    chosen[rng.choice(len(rates), p=rates / rates.sum())] = True
    return [name for name, use in zip(DEVICES, chosen) if use]


def draw_devices(chest: Chest, severity: float, rng: np.random.Generator) -> None:
    """Draw the devices that `choose_devices` names with the same generator."""
    pen = Drawing(chest)
    for name in choose_devices(rng):
        DEVICES[name][0](chest, pen, rng)
    chest.density += np.float32(0.9 + 0.8 * severity) * pen.field(0.003)
