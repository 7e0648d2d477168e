"""Which findings a simulated study shows: the prevalences of CXR-LT 2024 and a latent Gaussian model of their company.

The real counts are those of the 258,871 rows of CXR-LT 2024's ``train_labeled.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

ROWS = 258_871
COUNTS = {
    "Adenopathy": 3409,
    "Atelectasis": 65376,
    "Azygos Lobe": 199,
    "Calcification of the Aorta": 4239,
    "Cardiomegaly": 74738,
    "Clavicle Fracture": 168,
    "Consolidation": 15371,
    "Edema": 37256,
    "Emphysema": 3661,
    "Enlarged Cardiomediastinum": 29628,
    "Fibrosis": 1169,
    "Fissure": 2803,
    "Fracture": 11568,
    "Granuloma": 2965,
    "Hernia": 3986,
    "Hydropneumothorax": 646,
    "Infarction": 727,
    "Infiltration": 10087,
    "Kyphosis": 778,
    "Lobar Atelectasis": 129,
    "Lung Lesion": 2338,
    "Lung Opacity": 77482,
    "Mass": 5288,
    "Nodule": 7531,
    "Normal": 34292,
    "Pleural Effusion": 66401,
    "Pleural Other": 616,
    "Pleural Thickening": 3272,
    "Pneumomediastinum": 704,
    "Pneumonia": 46660,
    "Pneumoperitoneum": 516,
    "Pneumothorax": 13858,
    "Pulmonary Embolism": 1631,
    "Pulmonary Hypertension": 903,
    "Rib Fracture": 8919,
    "Round(ed) Atelectasis": 172,
    "Subcutaneous Emphysema": 2046,
    "Support Devices": 86079,
    "Tortuous Aorta": 3336,
    "Tuberculosis": 2078,
}
LABELS = tuple(COUNTS)

# Common causes: each is one latent factor, and a finding loads on the causes it comes from.
CAUSES: dict[str, dict[str, float]] = {
    "heart failure": {
        "Edema": 0.8, "Cardiomegaly": 0.6, "Pleural Effusion": 0.55, "Enlarged Cardiomediastinum": 0.45,
        "Pulmonary Hypertension": 0.4, "Fissure": 0.35, "Lung Opacity": 0.3, "Support Devices": 0.3,
    },
    "infection": {
        "Pneumonia": 0.75, "Consolidation": 0.65, "Infiltration": 0.5, "Lung Opacity": 0.6, "Atelectasis": 0.15,
        "Pleural Effusion": 0.15,
    },
    "collapse": {
        "Atelectasis": 0.6, "Pleural Effusion": 0.5, "Support Devices": 0.4, "Lung Opacity": 0.25,
        "Hydropneumothorax": 0.3, "Pneumoperitoneum": 0.35,
    },
    "air leak": {
        "Pneumothorax": 0.7, "Subcutaneous Emphysema": 0.8, "Pneumomediastinum": 0.75, "Hydropneumothorax": 0.5,
        "Fracture": 0.4, "Support Devices": 0.25, "Pneumoperitoneum": 0.2,
    },
    "old infection": {
        "Tuberculosis": 0.75, "Granuloma": 0.4, "Nodule": 0.35, "Infiltration": 0.4, "Fibrosis": 0.45,
        "Pleural Thickening": 0.3, "Adenopathy": 0.2,
    },
    "age": {
        "Calcification of the Aorta": 0.6, "Tortuous Aorta": 0.65, "Kyphosis": 0.5, "Hernia": 0.4, "Cardiomegaly": 0.25,
        "Emphysema": 0.35,
    },
    "tumour": {"Mass": 0.65, "Lung Lesion": 0.65, "Nodule": 0.5, "Adenopathy": 0.55},
    "asbestos": {"Pleural Thickening": 0.55, "Pleural Other": 0.65, "Round(ed) Atelectasis": 0.65, "Fibrosis": 0.3},
    "embolism": {"Pulmonary Embolism": 0.65, "Infarction": 0.65, "Pulmonary Hypertension": 0.4},
}  # fmt: skip

# A part is read off its whole: (part, whole, share of the part's cases that name the part alone).
PARTS = (
    ("Lobar Atelectasis", "Atelectasis", 0.0),
    ("Rib Fracture", "Fracture", 0.04),
    ("Clavicle Fracture", "Fracture", 0.04),
)
# Share of a finding's variance that belongs to the patient and not to the study; the others have ACUTE.
CHRONIC = {
    "Azygos Lobe": 0.95, "Calcification of the Aorta": 0.85, "Cardiomegaly": 0.8, "Clavicle Fracture": 0.6,
    "Emphysema": 0.8, "Enlarged Cardiomediastinum": 0.6, "Fibrosis": 0.8, "Fracture": 0.7, "Granuloma": 0.8,
    "Hernia": 0.8, "Kyphosis": 0.9, "Lung Lesion": 0.5, "Mass": 0.5, "Nodule": 0.5, "Normal": 0.5,
    "Pleural Other": 0.7, "Pleural Thickening": 0.7, "Pulmonary Hypertension": 0.7, "Rib Fracture": 0.7,
    "Round(ed) Atelectasis": 0.7, "Support Devices": 0.6, "Tortuous Aorta": 0.85, "Tuberculosis": 0.7,
}  # fmt: skip
ACUTE = 0.4
# Rarer than this is "tail", the part of the distribution that `prevalences(tail)` compresses.
HEAD = 0.05
# Support Devices among Normal studies, as a multiple of the overall rate; AP among studies with devices, and overall.
DEVICES_IF_NORMAL = 0.3
AP_IF_DEVICES, AP = 0.8, 0.6


def prevalences(tail: float) -> dict[str, float]:
    """Prevalence of each label, with the rare end lifted: ``HEAD·(p/HEAD)**tail`` for p below ``HEAD``.

    Args:
        tail: 1 keeps the real prevalences, smaller lifts the rare ones (0 lifts them all to ``HEAD``).

    Raises:
        ValueError: if ``tail`` is outside [0, 1].
    """
    if not 0 <= tail <= 1:
        raise ValueError(f"tail must be in [0, 1] (1 keeps the real prevalences), got {tail!r}")
    real = {name: count / ROWS for name, count in COUNTS.items()}
    return {name: p if p >= HEAD else HEAD * (p / HEAD) ** tail for name, p in real.items()}


@cache
def _loadings() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Factor loadings (labels, causes), the labels' own standard deviations, and their patient shares."""
    loadings = np.array([[cause.get(name, 0.0) for cause in CAUSES.values()] for name in LABELS])
    own = np.sqrt(1 - (loadings**2).sum(1))
    return loadings, own, np.array([CHRONIC.get(name, ACUTE) for name in LABELS])


def _latents(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, labels) standard normal latents, correlated through the causes."""
    loadings, own, _ = _loadings()
    return rng.standard_normal((n, loadings.shape[1])) @ loadings.T + own * rng.standard_normal((n, len(LABELS)))


@dataclass(frozen=True)
class LabelModel:
    """Draws the labels of a patient's studies; every label has its prevalence exactly, in expectation.

    A study is Normal or not by a latent of its own; given that it is not, every finding is present when its latent is
    below the quantile of p/(1 − p_Normal). A part (Rib Fracture) is drawn given its whole (Fracture) by a latent that
    depends on nothing else. So the marginals hold whatever the correlations are.

    Args:
        tail: see `prevalences`.
    """

    tail: float

    def sample(self, n_studies: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Labels (n_studies, 40) of one patient's studies, in the order of ``LABELS``."""
        _, _, share = _loadings()
        z = np.sqrt(share) * _latents(1, rng) + np.sqrt(1 - share) * _latents(n_studies, rng)
        u = dict(zip(LABELS, norm.cdf(z).T))
        p = prevalences(self.tail)
        normal = u["Normal"] < p["Normal"]
        present = {name: ~normal & (u[name] < p[name] / (1 - p["Normal"])) for name in LABELS}
        present["Normal"] = normal
        for part, whole, alone in PARTS:
            if_whole = (1 - alone) * p[part] / p[whole]
            otherwise = alone * p[part] / (1 - p[whole] - p["Normal"])
            present[part] = ~normal & (u[part] < np.where(present[whole], if_whole, otherwise))
        devices = p["Support Devices"]
        if_normal = DEVICES_IF_NORMAL * devices
        otherwise = (devices - p["Normal"] * if_normal) / (1 - p["Normal"])
        present["Support Devices"] = u["Support Devices"] < np.where(normal, if_normal, otherwise)
        return np.stack([present[name] for name in LABELS], axis=1)


def sample_position(has_devices: bool, rng: np.random.Generator) -> str:
    """Draw AP or PA: patients with devices are more often imaged in bed."""
    devices = COUNTS["Support Devices"] / ROWS
    ap = AP_IF_DEVICES if has_devices else (AP - devices * AP_IF_DEVICES) / (1 - devices)
    return "AP" if rng.random() < ap else "PA"
