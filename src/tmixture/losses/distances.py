"""Euclidean distances that a miner and a loss take once between them, and whose gradient is one matrix product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

# With fewer rows than this torch's own function costs nothing, and has more digits.
MANY_ROWS = 256


class EuclideanDistance(LpDistance):
    """`LpDistance(p=2)` of pytorch-metric-learning, with less work for large batches.

    A batch that is compared with itself has a symmetric matrix of distances, whose gradient takes one product with the
    batch instead of two; and within `once` the matrix is computed a single time.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(p=2, **kwargs)
        self._taken: list[tuple[Tensor, Tensor | None, Tensor]] | None = None
        self._with_gradient = True

    @contextmanager
    def once(self) -> Iterator[None]:
        """A context in which the distances of the same tensors are not computed again."""
        self._taken, self._with_gradient = [], torch.is_grad_enabled()
        try:
            yield
        finally:
            self._taken = None

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """Distances (n, m) of (n, d) from (m, d), or (n, n) without references."""
        ref_emb = None if ref_emb is query_emb else ref_emb
        for query, ref, distances in self._taken or ():
            if query is query_emb and ref is ref_emb:
                return distances if torch.is_grad_enabled() else distances.detach()
        if self._taken is None:
            return super().forward(query_emb, ref_emb)
        with torch.set_grad_enabled(self._with_gradient):  # a miner asks without
            distances = super().forward(query_emb, ref_emb)
        self._taken.append((query_emb, ref_emb, distances))
        return distances if torch.is_grad_enabled() else distances.detach()

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """Distances (n, m) of normalised rows."""
        if query_emb is ref_emb and len(query_emb) >= MANY_ROWS:
            return _SelfDistances.apply(query_emb)
        return super().compute_mat(query_emb, ref_emb)


class _SelfDistances(torch.autograd.Function):
    """‖x_i − x_j‖ (n, n) from rows (n, d); like that of `torch.cdist`, the gradient is zero where the distance is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        squares = x.square().sum(1)
        distances = torch.addmm(squares, x, x.T, alpha=-2).add_(squares[:, None]).clamp_(min=0).sqrt_()
        ctx.save_for_backward(x, distances)
        return distances

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, distances = ctx.saved_tensors
        pull = torch.where(distances > 0, gradient / distances, 0.0)
        pull = pull + pull.T
        return torch.addmm(x * pull.sum(1, keepdim=True), pull, x, alpha=-1)
