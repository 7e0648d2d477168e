"""The M-step of the degrees of freedom."""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.special import digamma_remainder, trigamma_remainder

# Newton steps: the start is off by 1.5 % at most, and each step squares that.
NEWTON_STEPS = 4


def solve_dof(constant: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The root ν of log(ν/2) − ψ(ν/2) + constant = 0 within the bounds, elementwise.

    This is the stationary condition of Q in ν (Peel & McLachlan 2000, Eq. 33, for EM; Liu, Rubin & Wu 1998 for PX-EM):
    the two differ only in the constant, see `tmixture.em`. log x − ψ(x) falls strictly from ∞ to 0, so there is at most
    one root; without one inside the bounds, the nearer bound is the constrained maximum and is returned.

    It is also the equation of the shape of a gamma distribution, for which Minka (2002, "Estimating a Gamma
    distribution") gives the start and Newton's method in 1/x, in which the function is nearly linear.

    Args:
        constant: float64 tensor of any shape.
        bounds: lower and upper bound of ν, both positive and finite.

    Returns:
        ν, of the constant's shape.
    """
    low, high = (constant.new_full((), bound / 2) for bound in bounds)
    target = (-constant).clamp(-digamma_remainder(high), -digamma_remainder(low))
    x = (3 - target + ((target - 3).square() + 24 * target).sqrt()) / (12 * target)
    for _ in range(NEWTON_STEPS):
        excess = -digamma_remainder(x) - target
        x = (x / (1 - excess / trigamma_remainder(x))).clamp(low, high)
    return 2 * x


def expected_log_correction(dof: Tensor, d: int) -> Tensor:
    """ψ((ν+d)/2) − log((ν+d)/2): what turns log E[U] into E[log U], given x; 0 where ν = ∞."""
    half = (torch.where(dof.isinf(), 1.0, dof) + d) / 2
    return torch.where(dof.isinf(), 0.0, digamma_remainder(half))
