"""What the figures have in common."""

import math

import torch
from matplotlib.axes import Axes

from tmixture import StudentTMixture

MARKERS, GREYS = "o^sDv", ("0.1", "0.45", "0.65", "0.3", "0.55")


def ellipses(ax: Axes, mixture: StudentTMixture, share: float = 0.9, **style: object) -> None:
    """The ellipses of the scale matrices that hold this share of each component of two features."""
    angles = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack([angles.cos(), angles.sin()])
    remaining = math.log(1 - share)
    for mean, scale, dof in zip(mixture.means, mixture.scales, mixture.dof):
        squared = -2 * remaining if dof.isinf() else float(dof) * math.expm1(-2 * remaining / float(dof))
        outline = mean[:, None] + math.sqrt(squared) * torch.linalg.cholesky(scale) @ circle
        ax.plot(*outline, **{"color": "black", "linewidth": 1.4, **style})
