"""Batches that come again within one training step, and must not be learned twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture.losses.memory import Remembered

# A batch is the last one if more than this share of its rows are bit for bit what they were. Gradient accumulation over
# the parts of a contrastive batch computes one part anew at a time, and dropout may change its rows.
SAME_ROWS = 0.5


@dataclass(frozen=True)
class LastBatch:
    """What the last call that learned was given.

    Attributes:
        rows: (n, d), what was clustered; None before the first.
        past: what the memory held then.
    """

    rows: Tensor | None = None
    past: Remembered | None = None

    def comes_again_as(self, rows: Tensor) -> bool:
        """Whether these rows are those of the last batch, but for a part."""
        if self.rows is None or self.rows.shape != rows.shape or self.rows.device != rows.device or len(rows) == 0:
            return False
        return float((self.rows == rows).all(1).float().mean()) >= SAME_ROWS


def is_recomputation() -> bool:
    """Whether this is inside a backward pass, where activation checkpointing computes a forward pass anew."""
    return torch._C._current_graph_task_id() != -1
