"""What several processes must agree on before a mixture learns: which rows there are."""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.distributed import from_first_process, gather_rows, is_active, rank, world_size


class Exchange:
    """The rows that all processes bring to one training step.

    Usually each process brings rows of its own, and the step's rows are all of them, in the order of the ranks. Inside
    pytorch-metric-learning's `DistributedLossWrapper` each process brings the rows of all, in an order of its own: then
    the rows of the first process are those of the step. The two are told apart by a checksum that does not depend on
    the order.

    Args:
        rows: (n, d) in float32 or float64, what this process brings.
        again: whether this process takes its rows for those of an earlier call.

    Attributes:
        again: whether all processes do.
        replicated: whether each process brings the rows of all.
    """

    again: bool
    replicated: bool

    def __init__(self, rows: Tensor, *, again: bool = False) -> None:
        self.replicated, self.again = False, again
        if is_active():
            bits = rows.view(torch.int32 if rows.dtype == torch.float32 else torch.int64)
            mine = [bits.sum(), bits.new_tensor(len(rows)).long(), bits.new_tensor(again).long()]
            everyone = gather_rows(torch.stack(mine)[None])
            self.again = bool(everyone[:, 2].all())
            self.replicated = bool((everyone[:, :2] == everyone[0, :2]).all())

    def join(self, rows: Tensor) -> Tensor:
        """The rows of all processes, the same and in the same order everywhere."""
        return from_first_process(rows) if self.replicated else gather_rows(rows)


def share(rows: Tensor) -> Tensor:
    """This process's part of rows that all processes hold, so that each row is worked on once."""
    return rows.tensor_split(world_size())[rank()]
