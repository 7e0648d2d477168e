"""Stepwise EM (Cappé & Moulines 2009): step sizes, and the statistics that run through a stream of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmixture.scales import Scale
from tmixture.statistics import SufficientStatistics


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


class RunningStatistics(nn.Module):
    """Average statistics per unit of sample weight, about a fixed reference, as buffers that a `state_dict` carries.

    The buffers come into being with the first batch. They stay in float64 when the module around them is cast.

    Attributes:
        total_weight: sum of all sample weights seen.
        regularization: added to scale diagonals, fixed with the initialisation.
        variance: mean variance within components at the initialisation, towards which the scales of components of very
            few rows shrink.
        warmup, warmup_weight: rows kept from the first batches, for the initialisation.
    """

    _device: Tensor
    reference: Tensor
    total_weight: Tensor
    names = ("responsibility", "mass", "first", "scatter", "log_mass", "log_likelihood", "weight", "rows", "reference")

    def __init__(self) -> None:
        super().__init__()
        for name in (*self.names, "total_weight", "regularization", "variance", "warmup", "warmup_weight"):
            self.register_buffer(name, None)
        self.register_buffer("_device", torch.empty(0), persistent=False)  # follows the module

    @property
    def started(self) -> bool:
        """Whether statistics exist, as opposed to nothing or rows in waiting."""
        return self.mass is not None

    def get(self) -> SufficientStatistics:
        """The running statistics."""
        return SufficientStatistics(**{name: getattr(self, name) for name in self.names})

    def set(self, statistics: SufficientStatistics) -> None:
        """Replace the running statistics."""
        for name, tensor in statistics.tensors().items():
            setattr(self, name, tensor)

    def start(self, statistics: SufficientStatistics, scale: Scale, regularization: float, variance: float) -> None:
        """Begin from the sums of a data set, with the means that they give as the reference."""
        centre = statistics.reference + statistics.first / statistics.mass.clamp(min=1e-30)[:, None]
        self.clear()
        self.set(statistics.about(scale, centre).per_unit_weight())
        self.total_weight = statistics.weight.clone()
        self.regularization = statistics.weight.new_tensor(regularization)
        self.variance = statistics.weight.new_tensor(variance)

    def keep(self, x: Tensor, weight: Tensor) -> None:
        """Keep these rows (n, d) and their weights (n,) for an initialisation to come."""
        self.warmup, self.warmup_weight = x, weight

    def clear(self) -> None:
        """Forget everything."""
        for name in self._buffers.keys() - {"_device"}:
            setattr(self, name, None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningStatistics:
        # Follow the module to another device, but not to another dtype: sums in half precision are worthless.
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(torch.empty(0, device=tensor.device)).device)

        return super()._apply(move, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Which buffers exist, and the number of rows in waiting, are part of the state.
        for name in self._buffers.keys() - {"_device"}:
            stored = state_dict.get(prefix + name)
            setattr(self, name, None if stored is None else torch.empty_like(stored, device=self._device.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
