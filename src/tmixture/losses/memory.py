"""A memory of recent embeddings, so that small batches find positives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingMemory(nn.Module):
    """The last `size` embeddings of a stream, oldest first, as buffers that a `state_dict` carries exactly.

    No labels are kept: they are computed anew from the rows whenever they are needed, so they cannot go stale.

    Args:
        size: how many rows are remembered.

    Attributes:
        embeddings: (n, d) with n ≤ `size`, or None while nothing has been seen.
        features: (n, m), what is clustered, where that is something else than the embeddings; or None.
    """

    embeddings: Tensor | None
    features: Tensor | None

    def __init__(self, size: int) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be a positive integer, got {size!r}")
        self.size = size
        self.register_buffer("embeddings", None)
        self.register_buffer("features", None)

    def __len__(self) -> int:
        return 0 if self.embeddings is None else len(self.embeddings)

    @property
    def content(self) -> tuple[Tensor, Tensor] | None:
        """The embeddings (n, d) and what is clustered in their place (n, m); None while nothing has been seen."""
        if self.embeddings is None:
            return None
        return self.embeddings, self.embeddings if self.features is None else self.features

    def check(self, embeddings: Tensor, features: Tensor | None) -> None:
        """Raise a `ValueError` if `push` could not take these rows."""
        if self.embeddings is None:
            return
        if (features is None) != (self.features is None):
            raise ValueError("cluster_embeddings must be given with every call or with none while there is a memory")
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"embeddings have width {embeddings.shape[1]}, but the memory holds rows of width "
                f"{self.embeddings.shape[1]}"
            )

    @torch.no_grad()
    def push(self, embeddings: Tensor, features: Tensor | None = None) -> None:
        """Remember embeddings (n, d) and what is clustered in their place (n, m), and forget the oldest rows."""
        self.check(embeddings, features)
        self.embeddings = _appended(self.embeddings, embeddings, self.size)
        if features is not None:
            self.features = _appended(self.features, features, self.size)

    def extra_repr(self) -> str:
        """How full it is."""
        return f"{len(self)} of {self.size} rows"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # How many rows there are is part of the state.
        for name in self._buffers:
            stored = state_dict.get(prefix + name)
            setattr(self, name, None if stored is None else torch.empty_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _appended(rows: Tensor | None, new: Tensor, size: int) -> Tensor:
    new = new.detach()
    joined = new if rows is None else torch.cat([rows, new.to(rows)])
    return joined[-size:].clone()
