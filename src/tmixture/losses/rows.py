"""The rows that come into a cluster loss: their dtype, their shapes, their finiteness and their norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A row shorter than this share of the median norm, or than this norm, has hardly a direction.
SHORT, SHORTEST = 1e-4, 1e-6


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        embeddings: (B, d).
        features: (B, m), what is clustered in place of the embeddings, or None.
        ref_emb: (M, d), where positives and negatives come from, or None for the batch itself.
        ref_labels: (M,); or None where row i of `ref_emb` belongs to embedding i.
        known: (B,), labels, −1 where unknown; or None.
    """

    embeddings: Tensor
    features: Tensor | None
    ref_emb: Tensor | None
    ref_labels: Tensor | None
    known: Tensor | None = None

    @property
    def clustered(self) -> Tensor:
        """What the mixture sees: (B, m)."""
        return (self.embeddings if self.features is None else self.features).detach()

    @property
    def is_paired(self) -> bool:
        """Whether row i of `ref_emb` belongs to embedding i."""
        return self.ref_emb is not None and self.ref_labels is None

    def check_shapes(self, n_features: int) -> None:
        """Raise a `ValueError` that names what does not fit."""
        B = len(self.embeddings)
        name = "embeddings" if self.features is None else "cluster_embeddings"
        if self.embeddings.dim() != 2:
            raise ValueError(f"embeddings must have shape (B, d), got {tuple(self.embeddings.shape)}")
        if self.clustered.dim() != 2 or self.clustered.shape[1] != n_features:
            raise ValueError(
                f"{name} have shape {tuple(self.clustered.shape)}, but the mixture has n_features={n_features}"
            )
        if len(self.clustered) != B:
            raise ValueError(f"cluster_embeddings have {len(self.clustered)} rows for {B} embeddings")
        if self.ref_emb is None:
            if self.ref_labels is not None:
                raise ValueError("ref_labels are given without ref_emb")
            return
        if self.ref_emb.dim() != 2 or self.ref_emb.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"ref_emb must have shape (M, {self.embeddings.shape[1]}), got {tuple(self.ref_emb.shape)}"
            )
        if self.ref_labels is not None and self.ref_labels.shape != self.ref_emb.shape[:1]:
            raise ValueError(
                f"ref_labels have shape {tuple(self.ref_labels.shape)} for {len(self.ref_emb)} rows of ref_emb"
            )
        if self.ref_labels is None and len(self.ref_emb) != B:
            raise ValueError(
                f"ref_emb has {len(self.ref_emb)} rows for {B} embeddings: without ref_labels, row i must belong to "
                "embedding i; the method `predict` gives labels to other rows"
            )

    def finite_part(self) -> tuple[Batch, int]:
        """The batch without the rows that hold NaN or infinity, and how many those are."""
        keep = _finite(self.embeddings)
        if self.features is not None:
            keep = keep & _finite(self.features)
        keep_ref = None if self.ref_emb is None else _finite(self.ref_emb)
        if self.is_paired and keep_ref is not None:
            keep = keep_ref = keep & keep_ref
        n_bad = int((~keep).sum()) + (0 if keep_ref is None or self.is_paired else int((~keep_ref).sum()))
        if n_bad == 0:
            return self, 0
        return Batch(
            self.embeddings[keep],
            None if self.features is None else self.features[keep],
            None if self.ref_emb is None else self.ref_emb[keep_ref],
            None if self.ref_labels is None else self.ref_labels[keep_ref],
            None if self.known is None else self.known[keep],
        ), n_bad


def at_least_float32(x: Tensor) -> Tensor:
    """The same values; half precision becomes float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their Euclidean norms, which may be as large or small as the dtype allows; zeros stay zeros."""
    x = at_least_float32(x)
    x = x / x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.nn.functional.normalize(x, dim=1)


def lengthened(x: Tensor) -> Tensor:
    """Rows (n, d), of which very short ones are made longer, with the gradient of the longer ones; zeros have none.

    The gradient of a row's direction grows as one over its norm, without bound, and pytorch-metric-learning takes rows
    shorter than 1e-12 for zeros. All rows but these stay bit for bit what they are.
    """
    with torch.no_grad():
        norm = x.norm(dim=1, keepdim=True)
        shortest = (SHORT * norm.median(0).values).clamp(SHORTEST, 1.0) if len(x) else norm
        short = norm < shortest
        longer = unit_rows(x) * shortest
        moves = (x != 0).any(1, keepdim=True).to(x)
    return torch.where(short, longer + (x - x.detach()) * moves, x)


def partly_known(labels: Tensor | None, embeddings: Tensor, classes: Tensor) -> Tensor | None:
    """The labels (B,) if some are unknown; None if all are known, or none are given."""
    if labels is None:
        return None
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor (B,), got {type(labels).__name__}")
    if labels.dim() != 1 or not (labels < 0).any():
        return None
    if labels.is_floating_point():
        raise ValueError(f"labels of which some are unknown must be integers, got {labels.dtype}")
    if len(labels) != len(embeddings):
        raise ValueError(f"labels have {len(labels)} entries for {len(embeddings)} embeddings")
    labels = labels.to(embeddings.device)
    strange = ~torch.isin(labels, classes) & (labels >= 0)
    if strange.any():
        raise ValueError(
            f"labels must be −1 or a class of the mixture's {len(classes)} components, got {int(labels[strange][0])}"
        )
    return labels


@dataclass(frozen=True)
class UnitRows:
    """The batches of a loader with their rows normalised. A batch is a tensor (n, d) or a tuple whose first item is."""

    batches: Iterable[Any]

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield unit_rows(torch.as_tensor(batch[0] if isinstance(batch, (tuple, list)) else batch).detach())


def normalized_data(data: Tensor | np.ndarray | Iterable[Any]) -> Tensor | UnitRows:
    """A data set of embeddings, in one piece or in batches, with its rows normalised."""
    if isinstance(data, (Tensor, np.ndarray)):
        return unit_rows(torch.as_tensor(data).detach())
    if iter(data) is data:
        raise ValueError("data can be iterated only once, but fitting passes over it many times: give a loader")
    return UnitRows(data)


def _finite(x: Tensor) -> Tensor:
    return x.detach().isfinite().all(1)
