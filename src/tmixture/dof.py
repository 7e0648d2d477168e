"""The M-step of the degrees of freedom."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from tmixture.special import digamma_remainder, digamma_remainders

# Newton steps: the start is off by 1.5 % at most, and each step squares that, and more. In what is left after two of
# them, 1e-10, a last step needs no new slope.
NEWTON_STEPS = 2
# M-steps from one leap to the next.
STEPS_PER_LEAP = 3
# How far a leap goes at most, in log ν.
LONGEST_LEAP = math.log(4.0)


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
    low, high = bounds[0] / 2, bounds[1] / 2
    target = (-constant).clamp(_at(high), _at(low))
    less = target - 3
    x = (torch.add(less.square(), target, alpha=24).sqrt() - less) / (12 * target)
    for _ in range(NEWTON_STEPS):
        value, slope = digamma_remainders(x)
        x = x / (1 + (value + target) / slope)
    x = x / (1 + (digamma_remainder(x) + target) / slope)
    return 2 * x.clamp(low, high)


@cache
def _at(x: float) -> float:
    """Log x − ψ(x)."""
    return -float(digamma_remainder(torch.tensor(x, dtype=torch.float64)))


def expected_log_correction(dof: Tensor, d: int | Tensor) -> Tensor:
    """ψ((ν+d)/2) − log((ν+d)/2): what turns log E[U] into E[log U], given x; 0 where ν = ∞."""
    half = (torch.where(dof.isinf(), 1.0, dof) + d) / 2
    return torch.where(dof.isinf(), 0.0, digamma_remainder(half))


class Leaps:
    """Extrapolation of a learned ν, which EM moves by ever the same small share of what is left (Aitken's δ²).

    The information on a large ν is nearly all missing: near ν = 30 EM takes a thousand steps for what a few leaps do.

    Args:
        bounds: of ν.
    """

    def __init__(self, bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        self._logs: list[Tensor] = []
        self._longest = LONGEST_LEAP

    def shorten(self) -> None:
        """Leap less far next time: the last leap went too far."""
        self._longest /= 8

    def next(self, dof: Tensor) -> Tensor | None:
        """Where the last M-steps, of which this is the outcome (K,), lead to in the end; None if it is too soon."""
        self._logs.append(dof.log())
        if len(self._logs) < STEPS_PER_LEAP:
            return None
        first, step = self._logs[-2] - self._logs[-3], self._logs[-1] - self._logs[-2]
        ratio = torch.where(first == 0, 0.0, step / first).clamp(0, 0.999)
        leap = (step * ratio / (1 - ratio)).clamp(-self._longest, self._longest)
        self._logs, self._longest = [], min(2 * self._longest, LONGEST_LEAP)
        return (dof * leap.exp()).clamp(*self.bounds)
