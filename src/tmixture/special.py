"""Gamma functions less the terms that cancel where they are used: exact to rounding, however large the argument is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# From here on the series of log Γ is exact to 1e-15.
SERIES = 20.0
# … and three terms of those of its derivatives.
SHIFT = 32


def log_gamma_remainder(z: Tensor) -> Tensor:
    """`lgamma(z) − ((z−½)·log(z) − z + ½·log(2π))`, about 1/(12z): Stirling's series (DLMF 5.11.1)."""
    small, large = z.clamp(max=SERIES), z.clamp(min=SERIES)
    exact = torch.lgamma(small) - (small - 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    inverse = large.reciprocal()
    q = inverse.square()
    series = inverse * (1 / 12 - q * (1 / 360 - q * (1 / 1260 - q / 1680)))
    return torch.where(z < SERIES, exact, series)


def digamma_remainder(z: Tensor) -> Tensor:
    """`ψ(z) − log(z)`, about −1/(2z), by Stirling's series at z + `SHIFT` (DLMF 5.5.2 and 5.11.2)."""
    return _digamma_remainder(z, _inverses(z))


def digamma_remainders(z: Tensor) -> tuple[Tensor, Tensor]:
    """`ψ(z) − log(z)`, and z times its derivative, `z·ψ′(z) − 1`, more than 1/(2z), to some 1e-15·z of itself."""
    inverses = _inverses(z)
    last = inverses[..., -1]
    q = last.square()
    series = torch.sub(last * (1 + q * (1 / 6 - q * (1 / 30 - q / 42))), q, alpha=0.5)
    slope = z * (inverses.square().sum(-1) + series) - 1
    return _digamma_remainder(z, inverses), torch.maximum(slope, 0.5 / z)


def _inverses(z: Tensor) -> Tensor:
    """1/(z + i) for i = 0 … `SHIFT`."""
    return (z[..., None] + torch.arange(SHIFT + 1, device=z.device)).reciprocal()


def _digamma_remainder(z: Tensor, inverses: Tensor) -> Tensor:
    last = inverses[..., -1]
    q = last.square()
    tail = torch.sub(q * (1 / 12 - q * (1 / 120 - q / 252)), last, alpha=0.5)
    return (SHIFT / z).log1p() - inverses.sum(-1) - tail
