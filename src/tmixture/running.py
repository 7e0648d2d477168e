"""What runs through a stream of batches, as buffers that a `state_dict` carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from tmixture.host import number, set_number
from tmixture.numerics import exact
from tmixture.parameters import Parameters
from tmixture.sampling import Sample
from tmixture.statistics import SufficientStatistics
from tmixture.streaming import WARMUP_ROWS, Stream

STATISTICS = tuple(field.name for field in fields(SufficientStatistics))


class RunningStatistics(nn.Module):
    """The state of a stream: rows in waiting at first, then statistics.

    All buffers have their final shapes from the beginning, and what they hold is said by buffers, too: whatever
    copies, averages, broadcasts or loads the tensors of a module finds the same ones at any time. They stay in float64
    when the module around them is cast.

    Args:
        parameters: of the mixture: their shapes, and the device, are what matters.
        dtype: that the mixture keeps its parameters in.

    Attributes:
        total_weight, regularization, variance: see `Stream`; and the statistics, by the names of their fields.
        has_statistics: whether these are in use, 0 or 1. A floating number, so that averages of modules exist.
        waiting_rows, waiting_weight: kept from the first batches, for the initialisation.
        n_waiting: how many of those are in use.
    """

    total_weight: Tensor
    regularization: Tensor
    variance: Tensor
    has_statistics: Tensor
    waiting_rows: Tensor
    waiting_weight: Tensor
    n_waiting: Tensor

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        super().__init__()
        reference = exact(torch.zeros_like(parameters.means))
        K, d = reference.shape
        for name, tensor in SufficientStatistics.zeros(parameters.scale, reference).tensors().items():
            self.register_buffer(name, tensor)
        self.register_buffer("total_weight", reference.new_zeros(()))
        self.register_buffer("regularization", reference.new_zeros(d))
        self.register_buffer("variance", reference.new_zeros(d))
        self.register_buffer("has_statistics", reference.new_zeros(()))
        wide = torch.promote_types(dtype, torch.float32)
        self.register_buffer("waiting_rows", reference.new_zeros(WARMUP_ROWS * K, d, dtype=wide))
        self.register_buffer("waiting_weight", torch.zeros_like(self.waiting_rows[:, 0]))
        self.register_buffer("n_waiting", torch.zeros((), dtype=torch.long, device=reference.device))

    @property
    def started(self) -> bool:
        """Whether statistics exist, as opposed to nothing or rows in waiting."""
        return bool(number(self, "has_statistics"))

    @property
    def stream(self) -> Stream:
        """What is known of a stream that has started."""
        statistics = SufficientStatistics(**{name: getattr(self, name) for name in STATISTICS})
        return Stream(statistics, self.total_weight, self.regularization, self.variance)

    @property
    def waiting(self) -> Sample | None:
        """The rows kept for an initialisation to come; None if there are none."""
        n = int(number(self, "n_waiting"))
        return Sample(self.waiting_rows[:n], self.waiting_weight[:n], n) if n else None

    def set(self, state: Stream | Sample) -> None:
        """Replace what is known."""
        if isinstance(state, Sample):
            self._put(waiting_rows=state.x, waiting_weight=state.weight, n_waiting=len(state.x))
            return
        self._put(
            **state.statistics.tensors(),
            total_weight=state.total_weight,
            regularization=state.regularization,
            variance=state.variance,
            has_statistics=1.0,
        )

    def _put(self, **values: Tensor | float) -> None:
        """Fill buffers with these values, as many rows as there are, and all others with zeros."""
        for name, buffer in list(self._buffers.items()):
            assert buffer is not None
            value = values.get(name)
            if buffer.dim() == 0 and not isinstance(value, Tensor):
                set_number(self, name, value or 0)
                continue
            filled = torch.zeros_like(buffer)  # a new tensor: the old one may be part of somebody's graph
            if isinstance(value, Tensor):
                target = filled[: len(value)] if name.startswith("waiting_") else filled
                target.copy_(value)
            setattr(self, name, filled)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RunningStatistics:
        # Follow the module to another device, but not to another dtype: sums in half precision are worthless.
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(torch.empty(0, device=tensor.device)).device)

        return super()._apply(move, recurse)
