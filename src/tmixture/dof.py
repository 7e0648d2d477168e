"""The M-step of the degrees of freedom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Halvings of the bracket in log ν: from a ratio of 1e6 between the bounds down to a relative 1e-14.
BISECTIONS = 50


def solve_dof(constant: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The root ν of log(ν/2) − ψ(ν/2) + constant = 0 within the bounds, elementwise.

    This is the stationary condition of Q in ν (Peel & McLachlan 2000, Eq. 33, for EM; Liu, Rubin & Wu 1998 for PX-EM):
    the two differ only in the constant, see `tmixture.em`. log x − ψ(x) falls strictly from ∞ to 0, so there is at most
    one root; without one inside the bounds, the nearer bound is the constrained maximum and is returned.

    Args:
        constant: float64 tensor of any shape.
        bounds: lower and upper bound of ν, both positive and finite.

    Returns:
        ν, of the constant's shape.
    """
    low = torch.full_like(constant, math.log(bounds[0]))
    high = torch.full_like(constant, math.log(bounds[1]))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        half = middle.exp() / 2
        too_small = half.log() - torch.digamma(half) + constant > 0
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return ((low + high) / 2).exp().clamp(*bounds)


def expected_log_correction(dof: Tensor, d: int) -> Tensor:
    """ψ((ν+d)/2) − log((ν+d)/2): what turns log E[U] into E[log U], given x; 0 where ν = ∞."""
    half = (torch.where(dof.isinf(), 1.0, dof) + d) / 2
    return torch.where(dof.isinf(), 0.0, torch.digamma(half) - half.log())
