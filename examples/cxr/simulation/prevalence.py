"""Which findings a simulated study shows: the prevalences of CXR-LT 2024 and a latent Gaussian model of their company.

The real counts are those of the 258,871 rows of CXR-LT 2024's ``train_labeled.csv``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from cxr.simulation.findings import FINDINGS

ROWS = 258_871
LABELS = tuple(FINDINGS)

# Common causes: each is one latent factor, and a finding loads on the causes it comes from.
CAUSES = (
    "heart failure",
    "infection",
    "collapse",
    "air leak",
    "old infection",
    "age",
    "tumour",
    "asbestos",
    "embolism",
)
# Share of a finding's variance that belongs to the patient and not to the study, where it is not chronic.
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
    real = {name: finding.count / ROWS for name, finding in FINDINGS.items()}
    return {name: p if p >= HEAD else HEAD * (p / HEAD) ** tail for name, p in real.items()}


@cache
def _loadings() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Factor loadings (labels, causes), the labels' own standard deviations, and their patient shares."""
    loadings = np.array([[finding.causes.get(cause, 0.0) for cause in CAUSES] for finding in FINDINGS.values()])
    own = np.sqrt(1 - (loadings**2).sum(1))
    return loadings, own, np.array([ACUTE if f.chronic is None else f.chronic for f in FINDINGS.values()])


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
        for part, finding in FINDINGS.items():
            if finding.part_of is None:
                continue
            whole, alone = finding.part_of
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
    devices = FINDINGS["Support Devices"].count / ROWS
    ap = AP_IF_DEVICES if has_devices else (AP - devices * AP_IF_DEVICES) / (1 - devices)
    return "AP" if rng.random() < ap else "PA"
