"""Draws a chest radiograph: fields of a canvas in body coordinates, the normal chest, and the film.

A chest is kept as what attenuates X-rays: lung gas (`Chest.lung` × `Chest.aeration`), vessels, and everything that adds
density. Findings change these parts, so a consolidation hides the vessels inside it without being told to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import gaussian_filter

from cxr.simulation.anatomy import LEFT, RIGHT, Anatomy, Floats, View

OVERSAMPLING = 2  # canvas pixels per pixel of the image; lines are drawn at twice the canvas again
GAS = 0.95  # attenuation that a fully aerated lung lacks
SIDES = (RIGHT, LEFT)


def ramp(x: NDArray[np.floating], width: float) -> Floats:
    """A smooth step from 0 to 1 around x = 0, `width` wide."""
    t = np.asarray(x * np.float32(1 / width), dtype=np.float32)
    t += np.float32(0.5)
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


class Drawing:
    """A layer of antialiased lines and polygons in body coordinates."""

    def __init__(self, chest: Chest) -> None:
        """Start an empty layer over a chest."""
        self.chest = chest
        self.image = Image.new("L", (2 * chest.size, 2 * chest.size))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: ArrayLike, width: float, value: float = 1.0) -> None:
        """A polyline through points (n, 2); one thinner than a canvas pixel is drawn fainter instead."""
        self.lines(np.asarray(points)[None], width, value)

    def lines(self, points: NDArray[np.floating], width: float, value: float = 1.0) -> None:
        """Polylines (m, n, 2) of one width (body units) and one value in 0..1."""
        thickness = width * self.chest.scale * 2
        fill = round(255 * value * min(1.0, thickness / 2))
        joint = "curve" if thickness > 12 else None
        for path in self.chest.to_pixels(points).reshape(len(points), -1).tolist():
            self.pen.line(path, fill=fill, width=max(2, round(thickness)), joint=joint)

    def polygon(self, points: ArrayLike, value: float = 1.0) -> None:
        """A filled polygon (n, 2)."""
        self.pen.polygon(self.chest.to_pixels(np.asarray(points)).ravel().tolist(), fill=round(255 * value))

    def field(self, blur: float = 0.0) -> Floats:
        """The layer on the canvas, softened by `blur` body units."""
        image = self.image.reduce(2)
        radius = blur * self.chest.scale
        if radius > 0.3:
            image = image.filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(image, dtype=np.float32) * np.float32(1 / 255)


class Chest:
    """One chest as one image sees it: findings change its fields, `film` develops it.

    Attributes:
        u, v: body coordinates of the canvas' pixels; u is measured from the spine.
        depth: distance from the spine.
        body, lung, mediastinum: soft masks in 0..1; the mediastinum includes the heart.
        above: height over the diaphragm, negative below it.
        aeration: how much of the lung's gas is there, about 1 where healthy.
        markings: how much of the vessels is there, 1 where healthy.
        density: what everything else attenuates.
    """

    def __init__(self, anatomy: Anatomy, view: View, image_size: int) -> None:
        """Lay out the coordinates of a chest, its masks and its normal contents."""
        self.anatomy, self.view = anatomy, view
        self.size = OVERSAMPLING * image_size
        self.scale = 0.5 * self.size * view.zoom  # canvas pixels per body unit
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * np.float32(2 / self.size) - 1
        x, y = axis[None, :] - np.float32(view.x), axis[:, None] - np.float32(view.y)
        cos, sin = np.float32(np.cos(view.roll) / view.zoom), np.float32(np.sin(view.roll) / view.zoom)
        self.turn = np.array([[cos, sin], [-sin, cos]]) * view.zoom**2 * self.size  # to the drawing grid
        self.origin = (np.array([view.x, view.y]) + 1) * self.size
        self.v: Floats = cos * y - sin * x
        self.u: Floats = cos * x + sin * y - self.profile(anatomy.midline, self.v)
        self.depth: Floats = np.abs(self.u)
        self.right = self.u < 0
        domes = [self.profile(lambda d, side=side: anatomy.diaphragm(d, side), self.depth) for side in SIDES]  # type: ignore[misc]
        self.above = domes[0] + (domes[1] - domes[0]) * ramp(self.u, 0.25) - self.v
        self.outer = self.profile(anatomy.outer, self.v)
        medial = ramp(self.depth - self.profile(anatomy.inner, self.v), 0.07)
        rim = np.minimum(self.outer - self.depth, self.v - anatomy.top)
        thickness = 0.55 * ramp(rim, 0.035) + 0.45 * ramp(rim - 0.05, 0.18)  # the lungs thin out towards their rim
        self.lung: Floats = medial * thickness * ramp(self.above, 0.035)
        self.aeration: Floats = np.float32(anatomy.gas) * (1 - anatomy.crowding * ramp(0.3 - self.above, 0.7))
        self.markings: Floats = np.ones_like(self.u)
        self.density: Floats = self._soft_tissue()
        self.density += self._heart_and_vessels()
        self.density += self._bones() * anatomy.rib_strength

    # --- coordinates -------------------------------------------------------------------------------------------------

    def profile(self, function: Callable[[NDArray[np.floating]], NDArray[np.floating]], at: Floats) -> Floats:
        """A function of one coordinate on the whole canvas, from a table (much cheaper than evaluating it)."""
        table = np.asarray(function(np.linspace(-2, 2, 2049)), dtype=np.float32)
        return table[np.clip((at + 2) * 512 + 0.5, 0, 2048).astype(np.intp)]

    def sided(self, function: Callable[[int], Floats]) -> Floats:
        """A field that is made separately for the right and the left half."""
        return np.where(self.right, function(RIGHT), function(LEFT))

    def half(self, side: int) -> NDArray[np.bool_]:
        """The half of the canvas on one side of the spine."""
        return self.right if side == RIGHT else ~self.right

    def to_pixels(self, points: ArrayLike) -> NDArray[np.floating]:
        """Pixels of the drawing grid at body points (..., 2), whose u is measured from the body's axis."""
        return np.asarray(points) @ self.turn + self.origin

    # --- fields ------------------------------------------------------------------------------------------------------

    def ellipse(
        self,
        centre: ArrayLike,
        radii: tuple[float, float],
        *,
        angle: float = 0.0,
        soft: float = 0.3,
        rough: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> Floats:
        """A blob, 1 inside and 0 outside; `soft` is the relative width of its edge, `rough` makes it ragged."""
        u0, v0 = np.asarray(centre, dtype=float)
        du, dv = self.u - np.float32(u0 - self.anatomy.midline(v0)), self.v - np.float32(v0)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        across, along = (cos * du + sin * dv) / np.float32(radii[0]), (cos * dv - sin * du) / np.float32(radii[1])
        r = np.sqrt(across * across + along * along)  # several times faster than hypot
        if rough and rng is not None:
            r += np.float32(2 * rough) * (self.cloud(0.6 * min(radii), rng) - np.float32(0.5))
        return ramp(1 - r, soft)

    def cloud(self, grain: float, rng: np.random.Generator) -> Floats:
        """Smooth noise with mean ½ and standard deviation about ¼; `grain` is the size of its lumps."""
        cells = int(np.clip(round(2 / max(grain, 0.01)), 3, 128))
        noise = Image.fromarray(rng.normal(0.5, 0.33, (cells, cells)).astype(np.float32))
        return np.asarray(noise.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def opacify(self, field: Floats, amount: float) -> None:
        """Replace lung gas by fluid or tissue; before and behind the mediastinum there is little of it."""
        self.aeration *= 1 - np.float32(amount) * field * (1 - np.float32(0.7) * self.mediastinum)

    # --- the normal chest --------------------------------------------------------------------------------------------

    def _soft_tissue(self) -> Floats:
        a = self.anatomy
        neck = 0.2 + 0.05 * a.fat
        shoulder = self.profile(
            lambda d: (
                a.top - 0.17 + 0.27 * np.clip((d - neck) / 0.75, 0, 1.2) ** 1.3 + 3 * np.clip(d - 1.02, 0, 1) ** 2
            ),
            self.depth,
        )
        torso = a.width + 0.17 + 0.3 * a.fat
        flank = self.profile(lambda v: torso + 0.3 * (1 - np.tanh((v + 0.1) / 0.3)), self.v)
        self.body: Floats = ramp(np.maximum(self.v - shoulder, 0.8 * (neck - self.depth)), 0.09) * ramp(
            flank - self.depth, 0.06
        )
        roundness = np.sqrt(np.clip(1.1 - (self.depth / flank) ** 2, 0.1, 1))
        tissue = (0.82 + 0.45 * a.fat) * roundness + 0.15
        fading = 0.05 + 1.2 * np.clip(self.depth - self.outer + 0.04, 0, None)  # the diaphragm's edge ends at the ribs
        tissue += (0.7 + 0.35 * a.fat) * ramp(-self.above / fading, 1.0)
        tissue *= self.body
        if a.breast:
            for side in SIDES:
                tissue += 0.22 * a.breast * self.ellipse(
                    (side * (0.36 + 0.05 * a.fat), a.base - 0.06), (0.27, 0.24 + 0.06 * a.fat), soft=0.35
                )  # fmt: skip
        if a.stomach:
            bubble = self.ellipse((0.3, a.base - a.raised[LEFT] + 0.1), (0.13 * a.stomach, 0.055 * a.stomach), soft=0.5)
            tissue -= 0.9 * bubble * ramp(-self.above - 0.03, 0.03)
        if a.bowel:
            rng = np.random.default_rng(a.seed)
            tissue -= (
                1.2 * a.bowel * ramp(-self.above - 0.15, 0.15) * self.body * ramp(self.cloud(0.16, rng) - 0.85, 0.5)
            )
        return tissue

    def _heart_and_vessels(self) -> Floats:
        a = self.anatomy
        off, low = a.shift, a.base
        arch = a.arch()
        # Upper mediastinum, its two borders (superior vena cava right, aorta left); the tortuous aorta swings out.
        belly = np.float32(a.tortuosity) * self.profile(lambda v: np.exp(-(((v - arch - 0.2) / 0.22) ** 2)), self.v)
        waist = self.profile(
            lambda v: a.mediastinum + 0.03 * (v - arch) + a.widening * np.exp(-(((v - arch) / 0.28) ** 2)), self.v
        )
        edge = waist + self.sided(lambda side: (0.8 if side == RIGHT else 0.9) * belly)
        middle = np.abs(self.u - np.float32(off))
        column = ramp(edge - middle, 0.05) * ramp(self.v - np.float32(a.top - 0.2), 0.6)
        knob = self.ellipse((off + 0.06 + 0.5 * a.widening, arch), (a.knob + 0.3 * a.tortuosity,) * 2, soft=0.3)
        trunk = self.ellipse((off + 0.085, arch + 0.15), (0.06 + a.trunk, 0.075 + a.trunk), soft=0.35)
        heart = self.ellipse(
            (off + 0.4 * a.heart, low - 0.38 * a.heart), (a.heart * 1.22, a.heart * 0.98), angle=a.heart_tilt, soft=0.12
        )
        atrium = self.ellipse((off - 0.12 * a.heart, low - 0.65 * a.heart), (a.heart * 0.66, a.heart * 1.05), soft=0.16)
        self.mediastinum: Floats = np.maximum(
            np.maximum(column, knob), np.maximum(np.maximum(heart, atrium), 0.95 * trunk)
        )
        density = self.mediastinum * (0.16 + (0.7 + 0.1 * a.fat) * self.lung)
        density *= 0.9 + 0.35 * ramp(self.v - np.float32(arch + 0.25), 0.7)
        aorta = np.float32(0.06 + 0.7 * a.tortuosity) * ramp(
            0.035 - np.abs(self.u - np.float32(0.085) - 0.9 * belly), 0.03
        )
        density += aorta * ramp(self.v - np.float32(arch), 0.1)
        trachea = ramp(0.032 - np.abs(self.u - np.float32(0.6 * off)), 0.025) * ramp(
            np.float32(arch + 0.06) - self.v, 0.1
        )
        density -= 0.3 * trachea
        for side in SIDES:
            hilum = self.ellipse(a.hilum_point(side), (0.06 * a.hilum, 0.1 * a.hilum), soft=0.9)
            density += 0.22 * a.hilum * hilum
        return density * self.body

    def _bones(self) -> Floats:
        a = self.anatomy
        spine = ramp(0.085 - self.depth, 0.03) * (0.8 + 0.2 * np.cos(self.v * np.float32(2 * np.pi / 0.13)))
        bones = 0.1 * spine
        ribs = Drawing(self)
        for side in SIDES:
            for points in broken(posterior_ribs(a, side), side, a.rib_breaks):
                ribs.line(points, 0.052, 0.9)
        bones += 0.14 * ribs.field(0.008)
        ribs = Drawing(self)
        for side in SIDES:
            ribs.lines(anterior_ribs(a, side), 0.058, 0.6)
        bones += 0.13 * ribs.field(0.014)
        girdle = Drawing(self)
        for side in SIDES:
            for points in clavicle(a, side):
                girdle.line(points, 0.066, 1.0)
            blade = np.array([[0.74, 0.12], [0.62, 0.28], [0.66, 0.75], [0.8, 0.4], [0.9, 0.22]]) * [side, 1] + [
                0,
                a.top,
            ]
            girdle.polygon(blade, 0.22)
            turn = np.linspace(0, 2 * np.pi, 14)
            girdle.polygon(np.stack([side * (0.93 + 0.1 * np.cos(turn)), a.top + 0.22 + 0.11 * np.sin(turn)], 1), 0.45)
        bones += 0.45 * girdle.field(0.008)
        return bones * self.body

    def _vessels(self) -> Floats:
        tree = Drawing(self)
        a = self.anatomy
        for side in SIDES:
            rng = np.random.default_rng([a.seed, side + 1])
            n = 12
            angle = np.linspace(-1.45, 1.45, n) + rng.normal(0, 0.12, n)
            reach = rng.uniform(0.55, 0.85, n) * np.where(np.abs(angle) > 0.8, 0.5, 0.9) * (1 - 0.45 * a.pruning)
            along = np.linspace(0, 1, 5)
            bend = rng.normal(0, 0.06, (n, 1)) * np.sin(np.pi * along)
            height = 0.54 + np.sin(angle)[:, None] * reach[:, None] * along + bend
            depth = 0.1 + np.cos(angle)[:, None] * reach[:, None] * along - 0.5 * bend
            turn = angle[:, None, None] + rng.normal(0, 0.7, (n, 2, 1))
            twigs_h = height[:, 2:4, None] + np.linspace(0, 0.2, 3) * np.sin(turn)
            twigs_d = depth[:, 2:4, None] + np.linspace(0, 0.3, 3) * np.cos(turn)
            tree.lines(a.lung_point(side, twigs_h, twigs_d).reshape(-1, 3, 2), 0.009, 0.55 * (1 - 0.7 * a.pruning))
            tree.lines(a.lung_point(side, height[:, 2:], depth[:, 2:]), 0.013, 0.7 * (1 - 0.5 * a.pruning))
            tree.lines(a.lung_point(side, height[:, :3], depth[:, :3]), 0.024 * a.hilum)
        return tree.field(0.006)

    # --- the film ----------------------------------------------------------------------------------------------------

    def film(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Develop the image (size, size): attenuation, scatter, exposure, noise, borders and side marker."""
        a, view = self.anatomy, self.view
        gas = self.lung * self.aeration
        vessels = self._vessels() * self.lung * np.clip(self.aeration, 0, 1) * self.markings
        grain = 0.1 * (self.cloud(0.045, np.random.default_rng(a.seed)) - 0.5) * gas
        total = self.density + self.body * 0.12 + np.float32(0.2 * a.vessels) * vessels + grain - GAS * gas * self.body
        total = np.clip(total, 0.0, None)
        picture = 1 - np.exp(-np.float32(np.exp(view.exposure)) * total)
        n = self.size // OVERSAMPLING
        picture = picture.reshape(n, OVERSAMPLING, n, OVERSAMPLING).mean((1, 3))
        if view.blur:
            picture = gaussian_filter(picture, view.blur * n / 128)
        picture += view.scatter * (0.6 - picture)
        grey = (0.62 + view.contrast * (picture**view.gamma - 0.62)) * 250 * ramp(picture - 0.08, 0.3)
        grey += rng.normal(0, 1.6 * view.noise, grey.shape)
        self._marker(grey)
        left, top, right, bottom = (int(width * n) for width in view.collimation)
        grey[:top], grey[n - bottom :], grey[:, :left], grey[:, n - right :] = 0, 0, 0, 0
        return np.clip(grey, 0, 255).astype(np.uint8)

    def _marker(self, grey: NDArray[np.floating]) -> None:
        """The lead letter beside one shoulder."""
        if self.view.marker:
            n = len(grey)
            letter = Image.new("L", (n, n))
            place = (n * (0.5 + 0.43 * self.view.marker), n * 0.1)
            ImageDraw.Draw(letter).text(
                place, "L" if self.view.marker == LEFT else "R", 255, font=_font(max(5, round(0.06 * n)))
            )
            np.maximum(grey, np.asarray(letter), out=grey)


def posterior_ribs(a: Anatomy, side: int) -> NDArray[np.floating]:
    """Centre lines (10, points, 2) of the posterior ribs: out of the spine, over, and down along the chest wall."""
    q = np.linspace(0, 1, 13)
    start = a.top + 0.02 + a.rib_spacing * np.arange(10)[:, None]
    end = start + a.rib_slope * (0.6 + 0.09 * np.arange(10)[:, None])
    v = start + (end - start) * q**2 - 0.035 * np.sin(np.pi * q)
    reach = a.outer(np.maximum(end, a.top + 0.08)) + 0.005
    u = 0.07 + (reach - 0.07) * np.sin(0.5 * np.pi * q) ** 0.9
    return np.stack([side * u + a.midline(v), v], axis=-1)


def anterior_ribs(a: Anatomy, side: int) -> NDArray[np.floating]:
    """Centre lines (6, points, 2) of the anterior ribs, which run down from the chest wall to the sternum."""
    q = np.linspace(0, 1, 9)
    start = a.top + 0.18 + 1.12 * a.rib_spacing * np.arange(6)[:, None]
    v = start + (0.1 + 0.8 * a.rib_slope + 0.012 * np.arange(6)[:, None]) * q**0.8
    u = a.outer(start) * (1 - q**1.6) + (0.2 + 0.02 * np.arange(6)[:, None]) * q**1.6
    return np.stack([side * u + a.midline(v), v], axis=-1)


def clavicle(a: Anatomy, side: int) -> list[NDArray[np.floating]]:
    """The clavicle's centre line, in two pieces when it is broken."""
    q = np.linspace(0, 1, 9)
    u = side * (0.06 + 0.62 * q) + a.shift * (1 - q)
    v = a.clavicle - a.clavicle_tilt * q + 0.03 * np.sin(2 * np.pi * q)
    points = np.stack([u + a.midline(v), v], axis=-1)
    step = a.clavicle_break.get(side)
    if step is None:
        return [points]
    outer = points[5:] + np.array([-0.02 * side, abs(step)])
    return [points[:5] - [0, 0.5 * abs(step)], outer]


def break_index(where: float) -> int:
    """The point of a posterior rib's centre line that is `where` (0 at the spine, 1 at its end) along it."""
    return int(np.clip(round(where * 13), 2, 10))


def broken(
    ribs: NDArray[np.floating], side: int, breaks: list[tuple[int, int, float, float]]
) -> list[NDArray[np.floating]]:
    """Ribs as pieces: at each break the outer piece is displaced and a gap opens."""
    pieces = list(ribs)
    for at, rib, where, step in breaks:
        if at == side:
            cut = break_index(where)
            pieces[rib] = ribs[rib, :cut]
            pieces.append(ribs[rib, cut:] + [0.3 * step * side, step])
    return pieces
