"""The body behind a simulated radiograph: the measures of one patient's chest, and how one image sees them.

Body coordinates: u runs across (negative is the patient's right, on the left of the image), v down; the unit is half
the width of an image taken at zoom 1, so a chest fills about (-1, 1) in both. Sides are −1 (right) and +1 (left).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

RIGHT, LEFT = -1, 1
SIDE_NAMES = {RIGHT: "right", LEFT: "left"}
Floats = NDArray[np.float32]


@dataclass
class Anatomy:
    """Measures of a chest; lengths in body units, strengths relative to 1."""

    width: float  # half-width of the rib cage
    top: float  # v of the lung apices
    base: float  # v of the dome of the right diaphragm
    dome: float  # how far the costophrenic angles lie below the domes
    raised: dict[int, float]  # how far each dome lies above `base`
    heart: float  # half-width of the heart
    heart_tilt: float
    mediastinum: float  # half-width of the vessels above the heart
    widening: float  # extra width of the upper mediastinum
    shift: float  # sideways shift of heart and mediastinum
    knob: float  # radius of the aortic knob
    tortuosity: float  # how far the aorta swings out
    trunk: float  # bulge of the main pulmonary artery
    hilum: float  # size of the hila
    scoliosis: float
    rib_spacing: float
    rib_slope: float
    rib_strength: float
    clavicle: float  # v of the clavicles' medial ends
    clavicle_tilt: float
    fat: float  # thickness of the soft tissue, 0 to 1
    breast: float  # 0 for none
    gas: float  # how transparent the lungs are
    vessels: float  # strength of the vessels
    crowding: float  # strength of haze at the bases
    stomach: float  # size of the gas bubble, 0 for none
    bowel: float  # amount of bowel gas
    seed: int  # of the vascular tree and other things that are the patient's own
    clavicle_break: dict[int, float] = field(default_factory=dict)  # side → displacement
    rib_breaks: list[tuple[int, int, float, float]] = field(default_factory=list)  # side, rib, where, displacement
    pruning: float = 0.0  # loss of the peripheral vessels

    def span(self) -> float:
        """Height of the lungs at the domes."""
        return self.base - self.top

    def arch(self) -> float:
        """V of the aortic arch."""
        return self.top + 0.37 * self.span()

    def hilum_point(self, side: int, outward: float = 0.0, down: float = 0.0) -> NDArray[np.floating]:
        """The centre of a hilum, or a point near it; the left hilum is higher."""
        v = self.arch() + 0.2 - 0.02 * side
        return np.array([side * (0.165 + outward) + self.shift + float(self.midline(v)), v + down])

    def midline(self, v: ArrayLike) -> NDArray[np.floating]:
        """U of the spine at v."""
        return self.scoliosis * np.sin(2.6 * np.asarray(v))

    def outer(self, v: ArrayLike) -> NDArray[np.floating]:
        """Distance from the midline to the lateral edge of the lungs at v (0 above the apices)."""
        t = np.clip((np.asarray(v) - self.top) / (self.span() + 0.6 * self.dome), 0, 1)
        return 0.26 + (self.width - 0.26) * (1 - (1 - t) ** 2.8) ** 0.45

    def inner(self, v: ArrayLike) -> NDArray[np.floating]:
        """Distance from the midline to the medial edge of the lungs at v."""
        above = np.clip(1 - (np.asarray(v) - self.top) / (0.17 * self.span()), 0, 1)
        return 0.065 + 0.195 * above**3

    def diaphragm(self, depth: ArrayLike, side: int) -> NDArray[np.floating]:
        """V of the diaphragm at a distance `depth` from the midline."""
        x = np.minimum(np.asarray(depth) / self.width, 1.02)  # it ends at the chest wall
        fall = np.where(x > 0.45, (x - 0.45) / 0.55, 0.55 * (x - 0.45) / 0.45)
        return self.base - self.raised[side] + self.dome * fall**2 * (1 + 0.4 * np.clip(x - 0.8, 0, None))

    def lung_point(self, side: int, height: ArrayLike, depth: ArrayLike) -> NDArray[np.floating]:
        """Points (..., 2) of a lung: height 0 (apex) to 1 (dome), depth 0 (mediastinum) to 1 (chest wall)."""
        v = self.top + np.asarray(height) * (self.span() - self.raised[side])
        from_midline = self.inner(v) + np.asarray(depth) * (self.outer(v) - self.inner(v))
        return np.stack(np.broadcast_arrays(side * from_midline + self.midline(v), v), axis=-1)


@dataclass
class View:
    """How one image was taken."""

    position: str  # "AP" or "PA"
    x: float  # image position of the body's origin, in half-widths
    y: float
    zoom: float
    roll: float  # rotation in the image plane, radians
    yaw: float  # rotation of the patient about the long axis
    exposure: float
    contrast: float
    gamma: float
    noise: float
    blur: float
    scatter: float
    collimation: tuple[float, float, float, float]  # width of the black borders: left, top, right, bottom
    marker: int  # side of the letter: −1, 0 (none), 1


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
    """A healthy patient."""

    def around(mean: float, sd: float) -> float:
        return mean + sd * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    female = rng.random() < 0.47
    width, top = around(0.63, 0.045), around(-0.78, 0.04)
    base = around(0.34, 0.06)
    return Anatomy(
        width=width,
        top=top,
        base=base,
        dome=around(0.17, 0.035),
        raised={RIGHT: 0.0, LEFT: around(-0.045, 0.025)},
        heart=around(0.265, 0.022) * width / 0.63,
        heart_tilt=around(0.5, 0.15),
        mediastinum=around(0.115, 0.012),
        widening=0.0,
        shift=around(0.0, 0.01),
        knob=around(0.085, 0.012),
        tortuosity=max(0.0, around(0.05, 0.06)),
        trunk=max(0.0, around(0.02, 0.012)),
        hilum=around(1.0, 0.12),
        scoliosis=around(0.0, 0.018),
        rib_spacing=around(0.125, 0.008),
        rib_slope=around(0.24, 0.06),
        rib_strength=around(1.0, 0.22),
        clavicle=top + around(0.12, 0.035),
        clavicle_tilt=around(0.12, 0.05),
        fat=float(rng.beta(1.6, 2.6)),
        breast=float(rng.uniform(0.3, 1.0)) if female else 0.0,
        gas=around(1.0, 0.08),
        vessels=around(1.0, 0.2),
        crowding=float(rng.uniform(0.05, 0.25)),
        stomach=float(rng.uniform(0.4, 1.2)) if rng.random() < 0.6 else 0.0,
        bowel=float(rng.random() ** 3) if rng.random() < 0.5 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def sample_view(position: str, rng: np.random.Generator) -> View:
    """One exposure; AP images are taken at the bedside, so they vary more in everything."""
    loose = 1.5 if position == "AP" else 1.0

    def around(mean: float, sd: float) -> float:
        return mean + sd * loose * float(np.clip(rng.standard_normal(), -2.2, 2.2))

    crop = rng.random(4) < 0.15
    return View(
        position=position,
        x=around(0.0, 0.06),
        y=around(0.06, 0.07),
        zoom=around(1.13, 0.07),
        roll=around(0.0, 0.04),
        yaw=around(0.0, 0.03),
        exposure=around(-0.17, 0.2),
        contrast=float(np.exp(around(0.06 if position == "AP" else 0.2, 0.17))),
        gamma=float(np.exp(around(0.0, 0.12))),
        noise=float(rng.uniform(0.4, 1.4)),
        blur=float(rng.uniform(0.0, 0.6)) * loose,
        scatter=float(rng.beta(1.0, 7.0)) * loose,
        collimation=tuple(np.where(crop, rng.uniform(0.0, 0.09, 4), 0.0)),
        marker=int(rng.choice([-1, 0, 1])),
    )


def posed(anatomy: Anatomy, view: View, rng: np.random.Generator) -> Anatomy:
    """The patient's chest in one image: breath, posture and magnification change its measures."""
    breath = 0.03 * float(rng.standard_normal())
    supine = view.position == "AP"
    if supine:
        breath -= float(rng.uniform(0.0, 0.16))
    return replace(
        anatomy,
        base=anatomy.base + breath,
        dome=anatomy.dome * (1 + 0.4 * breath),
        heart=anatomy.heart * (1.12 if supine else 1.0) * (1 - 0.6 * breath),
        mediastinum=anatomy.mediastinum * (1.1 if supine else 1.0),
        shift=anatomy.shift + view.yaw,
        clavicle=anatomy.clavicle - (0.05 if supine else 0.0) + 0.02 * float(rng.standard_normal()),
        clavicle_tilt=anatomy.clavicle_tilt + 0.03 * float(rng.standard_normal()),
        rib_slope=anatomy.rib_slope - 0.3 * breath,
        crowding=anatomy.crowding - 0.8 * min(breath, 0.0),
        stomach=anatomy.stomach * float(rng.uniform(0.3, 1.3)),
        raised=dict(anatomy.raised),
        clavicle_break={},
        rib_breaks=[],
    )
