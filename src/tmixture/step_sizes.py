"""Step sizes of stepwise EM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class PowerDecay:
    """Step sizes η_t = ((1 + offset)/(t + offset))^exponent, for streams from one distribution.

    With exponent 1 and offset 0 all rows weigh alike, however poor the parameters were that explained them. A larger
    offset forgets those sooner: with exponent 1 the memory is always the last 1/(1 + offset) or so of the stream, and
    what came before the row number n of N weighs (n/N)^(1 + offset). A smaller exponent forgets faster still, at the
    price of a memory that shrinks relative to the stream.

    The default came out best over well separated and overlapping mixtures, K = 3 to 40, batches of 10 and of 100: with
    small exponents the scales of many components stay noisy, without an offset those of overlapping ones stay behind.

    Args:
        exponent: κ in (0.5, 1].
        offset: t0 ≥ 0.
    """

    exponent: float = 1.0
    offset: float = 2.0

    def __post_init__(self) -> None:
        if not 0.5 < self.exponent <= 1:
            raise ValueError(f"exponent must lie in (0.5, 1], got {self.exponent}")
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"offset must be finite and not negative, got {self.offset}")

    def __call__(self, t: float) -> float:
        """The step size of the batch with number t = 1, 2 and so on."""
        return ((1 + self.offset) / (t + self.offset)) ** self.exponent


StepSize = float | Callable[[float], float]


def rate_of(step_size: StepSize, t: float) -> float:
    """The step size of batch t, capped at 1."""
    return min(1.0, step_size(t) if callable(step_size) else step_size)
