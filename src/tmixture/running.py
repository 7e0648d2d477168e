"""What runs through a stream of batches, as buffers that a `state_dict` carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from tmixture.sampling import Sample
from tmixture.statistics import SufficientStatistics
from tmixture.streaming import Stream

STATISTICS = tuple(field.name for field in fields(SufficientStatistics))


class RunningStatistics(nn.Module):
    """The state of a stream: rows in waiting at first, then statistics.

    The buffers come into being with the first batch. They stay in float64 when the module around them is cast.

    Attributes:
        total_weight, regularization, variance: see `Stream`; and the statistics, by the names of their fields.
        warmup, warmup_weight: rows kept from the first batches, for the initialisation.
    """

    _device: Tensor
    total_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in (*STATISTICS, "total_weight", "regularization", "variance", "warmup", "warmup_weight"):
            self.register_buffer(name, None)
        self.register_buffer("_device", torch.empty(0), persistent=False)  # follows the module

    @property
    def started(self) -> bool:
        """Whether statistics exist, as opposed to nothing or rows in waiting."""
        return self.mass is not None

    @property
    def stream(self) -> Stream:
        """What is known of a stream that has started."""
        statistics = SufficientStatistics(**{name: getattr(self, name) for name in STATISTICS})
        return Stream(statistics, self.total_weight, self.regularization, self.variance)

    @property
    def waiting(self) -> Sample | None:
        """The rows kept for an initialisation to come."""
        return None if self.warmup is None else Sample(self.warmup, self.warmup_weight, len(self.warmup))

    def set(self, state: Stream | Sample) -> None:
        """Replace what is known."""
        self.clear()
        if isinstance(state, Sample):
            self.warmup, self.warmup_weight = state.x, state.weight
            return
        self.total_weight, self.regularization, self.variance = state.total_weight, state.regularization, state.variance
        for name, tensor in state.statistics.tensors().items():
            setattr(self, name, tensor)

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
