"""A memory of recent embeddings, so that small batches find positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmixture.host import number, set_number


@dataclass(frozen=True)
class Remembered:
    """Rows of a memory.

    Attributes:
        embeddings: (n, d).
        clustered: (n, m), what is clustered in their place; the same tensor if nothing else is.
        known: (n,), labels, −1 where unknown.
    """

    embeddings: Tensor
    clustered: Tensor
    known: Tensor

    def last(self, n: int) -> Remembered:
        """The newest n rows."""
        return Remembered(self.embeddings[-n:], self.clustered[-n:], self.known[-n:])


class EmbeddingMemory(nn.Module):
    """The last `size` embeddings of a stream, oldest first, as buffers that a `state_dict` carries exactly.

    Labels that are known are kept with their rows. Those of a mixture are not: they are computed anew whenever they are
    needed, so they cannot go stale.

    The buffers have their final shapes from the beginning, so that modules can be averaged, broadcast and loaded at any
    time, with one exception: embeddings of another width than `n_features`, beside which other features are clustered,
    make the memory anew when the first of them come, or a state with them is loaded.

    Args:
        size: how many rows are remembered.
        n_features: their width.

    Attributes:
        rows: (size, d), of which the first `n_rows` are in use; buffer.
        other: (size, m), what is clustered, where that is something else than the embeddings, or None; buffer.
        known: (size,), labels that are known, −1 for those that are not; buffer.
        n_rows: buffer.
    """

    rows: Tensor
    other: Tensor | None
    known: Tensor
    n_rows: Tensor

    def __init__(self, size: int, n_features: int) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a positive integer, got {size!r}")
        self.size = size
        self.register_buffer("rows", torch.zeros(size, n_features))
        self.register_buffer("other", None)
        self.register_buffer("known", torch.full((size,), -1))
        self.register_buffer("n_rows", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return int(number(self, "n_rows"))

    @property
    def embeddings(self) -> Tensor:
        """The embeddings: (n, d) with n ≤ `size`."""
        return self.rows[: len(self)]

    @property
    def content(self) -> Remembered | None:
        """Everything, oldest first; None while nothing has been seen."""
        n = len(self)
        if n == 0:
            return None
        return Remembered(self.rows[:n], (self.rows if self.other is None else self.other)[:n], self.known[:n])

    def check(self, embeddings: Tensor, features: Tensor | None) -> None:
        """Raise a `ValueError` if `push` could not take these rows."""
        if len(self) == 0:
            return
        if (features is None) != (self.other is None):
            raise ValueError("cluster_embeddings must be given with every call or with none while there is a memory")
        if embeddings.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"embeddings have width {embeddings.shape[1]}, but the memory holds rows of width {self.rows.shape[1]}"
            )

    @torch.no_grad()
    def push(self, embeddings: Tensor, features: Tensor | None = None, known: Tensor | None = None) -> None:
        """Remember embeddings, and forget the oldest rows.

        Args:
            embeddings: (n, d).
            features: (n, m), what is clustered in their place.
            known: (n,), labels, −1 where unknown.
        """
        self.check(embeddings, features)
        n = min(len(self) + len(embeddings), self.size)
        self.other = None if features is None else self._appended(self.other, features)
        labels = self.known.new_full((len(embeddings), 1), -1) if known is None else known[:, None]
        self.known = self._appended(self.known[:, None], labels)[:, 0]
        self.rows = self._appended(self.rows, embeddings)
        set_number(self, "n_rows", n)

    def _appended(self, rows: Tensor | None, new: Tensor) -> Tensor:
        """A copy of the rows in use with new ones behind them, without the oldest where they are too many."""
        new = new.detach().to(self.rows if rows is None else rows)
        joined = new if rows is None or len(self) == 0 else torch.cat([rows[: len(self)], new])
        joined = joined[-self.size :]
        filler = joined.new_full((self.size - len(joined), joined.shape[1]), 0 if joined.is_floating_point() else -1)
        return torch.cat([joined, filler])

    def extra_repr(self) -> str:
        """How full it is."""
        return f"{len(self)} of {self.size} rows"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "n_rows" in state_dict:  # whether there are other features, and how wide rows are, belongs to it
            for name in ("rows", "other"):
                stored = state_dict.get(prefix + name)
                current = getattr(self, name)
                if stored is None:
                    setattr(self, name, None)
                elif current is None or (stored.shape != current.shape and len(stored) == self.size):
                    setattr(self, name, torch.empty_like(stored, device=self.n_rows.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
