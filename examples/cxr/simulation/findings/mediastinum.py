"""Heart, great vessels and what lies between the lungs."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from cxr.simulation.anatomy import Anatomy
from cxr.simulation.findings.record import Case, Finding, Rng, register
from cxr.simulation.hardware import smooth_path
from cxr.simulation.radiograph import SIDES, Chest, Drawing, ramp


def _aortic_calcification(chest: Chest, case: Case, rng: Rng) -> None:
    a, pen = chest.anatomy, Drawing(chest)
    turn = np.linspace(-1.9, rng.uniform(0.5, 1.2), 14)
    radius = (a.knob + 0.3 * a.tortuosity) * 0.95
    centre = (a.shift + 0.06 + 0.5 * a.widening + float(a.midline(a.arch())), a.arch())
    pen.line(np.stack([centre[0] + radius * np.cos(turn), centre[1] + radius * np.sin(turn)], axis=1), 0.02)
    chest.density += (0.5 + 0.9 * case.severity) * pen.field(0.003)


register(
    Finding(
        name="Calcification of the Aorta",
        count=4239,
        chronic=0.85,
        causes={"age": 0.6},
        wording=("calcification of the aorta", "calcified aortic arch", "aortic knob calcification"),
        paint=_aortic_calcification,
    )
)


def _cardiomegaly_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.heart *= 1.12 + 0.38 * case.severity


register(
    Finding(
        name="Cardiomegaly",
        count=74738,
        chronic=0.8,
        causes={"heart failure": 0.6, "age": 0.25},
        wording=("{s}cardiomegaly", "{s}enlargement of the cardiac silhouette", "{s}enlarged heart"),
        reshape=_cardiomegaly_shape,
    )
)


def _enlarged_cardiomediastinum_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.widening += 0.025 + 0.085 * case.severity


register(
    Finding(
        name="Enlarged Cardiomediastinum",
        count=29628,
        chronic=0.6,
        causes={"heart failure": 0.45},
        wording=("enlarged cardiomediastinum", "widening of the mediastinum", "{s}widened cardiomediastinal contour"),
        reshape=_enlarged_cardiomediastinum_shape,
    )
)


def _hernia(chest: Chest, case: Case, rng: Rng) -> None:
    a, radius = chest.anatomy, 0.11 + 0.1 * case.severity
    centre = np.array([a.shift + rng.uniform(-0.02, 0.1), a.base - 0.55 * radius - 0.04])
    sac = chest.ellipse(centre, (radius * 1.15, radius), soft=0.15)
    gas = chest.ellipse(centre, (radius * 1.0, radius * 0.85), soft=0.2) * ramp(centre[1] + 0.02 - chest.v, 0.02)
    chest.opacify(sac, 0.7)
    chest.density += (0.15 * sac - (0.5 + 0.3 * case.severity) * gas) * chest.body


register(
    Finding(
        name="Hernia",
        count=3986,
        chronic=0.8,
        causes={"age": 0.4},
        wording=("{s}hiatal hernia", "retrocardiac hiatal hernia", "{s}hernia with an air-fluid level"),
        paint=_hernia,
    )
)


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


register(
    Finding(
        name="Pneumomediastinum",
        count=704,
        causes={"air leak": 0.75},
        wording=("{s}pneumomediastinum", "mediastinal air", "air along the mediastinum, pneumomediastinum"),
        paint=_pneumomediastinum,
    )
)


def _pulmonary_hypertension_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.trunk += 0.03 + 0.05 * case.severity
    a.hilum *= 1.3 + 0.7 * case.severity
    a.pruning = max(a.pruning, 0.9 * case.severity)


register(
    Finding(
        name="Pulmonary Hypertension",
        count=903,
        chronic=0.7,
        causes={"heart failure": 0.4, "embolism": 0.4},
        wording=("pulmonary hypertension", "enlarged pulmonary arteries", "{s}pulmonary arterial hypertension"),
        reshape=_pulmonary_hypertension_shape,
    )
)


def _tortuous_aorta_shape(a: Anatomy, case: Case, rng: Rng) -> None:
    a.tortuosity += 0.09 + 0.13 * case.severity
    a.knob += 0.02 * case.severity


register(
    Finding(
        name="Tortuous Aorta",
        count=3336,
        chronic=0.85,
        causes={"age": 0.65},
        wording=("tortuous aorta", "{s}tortuosity of the aorta", "unfolded, tortuous thoracic aorta"),
        reshape=_tortuous_aorta_shape,
    )
)
