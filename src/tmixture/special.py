"""Gamma functions less the terms that cancel where they are used: exact to rounding, however large the argument is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# From here on the series below are exact to 1e-15.
SERIES = 20.0


def log_gamma_remainder(z: Tensor) -> Tensor:
    """`lgamma(z) − ((z−½)·log(z) − z + ½·log(2π))`, about 1/(12z): Stirling's series (DLMF 5.11.1)."""
    small, large = z.clamp(max=SERIES), z.clamp(min=SERIES)
    exact = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / large**2) / large**2) / large**2) / large
    return torch.where(z < SERIES, exact, series)


def digamma_remainder(z: Tensor) -> Tensor:
    """`ψ(z) − log(z)`, about −1/(2z) (DLMF 5.11.2)."""
    small, large = z.clamp(max=SERIES), z.clamp(min=SERIES)
    q = large.reciprocal().square()
    series = -0.5 / large - q * (1 / 12 - q * (1 / 120 - q * (1 / 252 - q * (1 / 240 - q / 132))))
    return torch.where(z < SERIES, torch.digamma(small) - small.log(), series)


def trigamma_remainder(z: Tensor) -> Tensor:
    """`z·ψ′(z) − 1`, about 1/(2z): z times the derivative of `digamma_remainder`."""
    small, large = z.clamp(max=SERIES), z.clamp(min=SERIES)
    q = large.reciprocal().square()
    series = 0.5 / large + q * (1 / 6 - q * (1 / 30 - q * (1 / 42 - q * (1 / 30 - q * 5 / 66))))
    return torch.where(z < SERIES, small * torch.special.polygamma(1, small) - 1, series)
