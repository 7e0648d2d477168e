"""Sums over the pairs of a row and a component in which the row has a share.

In high dimension a row has a share in one or two components, and nearly every weight is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.numerics import SUM_ROWS, cross_moments, exact

# Where at most one of so many weights is not zero, summing those is faster than a matrix product over all: on a CPU,
# where torch is slow to sum chosen rows in float64, and on other devices.
SPARSE = {torch.float32: 8, torch.float64: 40}
SPARSE_ELSEWHERE = 64

# Rows of a tile: enough for a matrix product, few enough that a group of few rows wastes little.
TILE_ROWS = 32


def weighted_sums(weight: Tensor, x: Tensor) -> Tensor:
    """Σ_i weight_ik·x_i: (n, K), (n, p) → (K, p), in float64 where the device has it."""
    if not is_sparse(weight):
        return cross_moments(weight, x)
    total = exact(x.new_zeros(weight.shape[1], x.shape[1]))
    add_pairs(total, x, *pairs_of(weight))
    return total


def is_sparse(weight: Tensor) -> bool:
    """Whether so few weights (n, K) are not zero that they are better summed one by one."""
    least = SPARSE[weight.dtype] if weight.device.type == "cpu" else SPARSE_ELSEWHERE
    # Every row has a share somewhere: few components need no look at the weights, for which a GPU would have to wait.
    # None is negative, and the sum of signs takes a quarter of the time of `count_nonzero`.
    return weight.shape[1] >= least and float(weight.sign().sum()) * least <= weight.numel()


def pairs_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights (n, K) that are not zero: their rows, components in ascending order, and values, all (m,)."""
    by_component = weight.T
    component, row = by_component.nonzero(as_tuple=True)
    return row, component, by_component[component, row]


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]` for (K, d) and indices (…,): (…, d), in a tenth of the time that a CPU takes for that."""
    return x.index_select(0, index.flatten()).unflatten(0, index.shape)


def rows_of(mask: Tensor) -> tuple[Tensor, ...]:
    """The rows of each component for which the mask (K, n) is true: K index tensors (m_k,)."""
    return mask.nonzero()[:, 1].split(mask.sum(1).tolist())


def add_pairs(total: Tensor, x: Tensor, rows: Tensor, groups: Tensor, weight: Tensor) -> None:
    """Add weight_m·x[rows_m] to total[groups_m], in place: (G, p), (n, p), (m,), (m,) in ascending order, (m,)."""
    if x.device.type != "cpu":
        total.index_add_(0, groups, exact(x[rows] * weight[:, None]))
        return
    # The one sum over chosen rows that does not write them out first. No more than `SUM_ROWS` of them are one bag.
    starts = groups.diff(prepend=groups.new_full((1,), -1)) != 0
    starts[::SUM_ROWS] = True
    first = starts.nonzero()[:, 0]
    sums = torch.nn.functional.embedding_bag(rows, x, first, mode="sum", per_sample_weights=weight)
    total.index_add_(0, groups[first], exact(sums))


def tiles(groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut the entries of each group into tiles of equal size.

    Args:
        groups: (n,), the group of each entry.
        n_groups: how many there are, of which some may be empty.

    Returns:
        The entries (T, `TILE_ROWS`) of each tile, the last one of a group repeated where it does not fill its last
        tile; a mask of the same shape without these repetitions; the group (T,) of each tile.
    """
    counts = torch.bincount(groups, minlength=n_groups)
    per_group = (counts + TILE_ROWS - 1) // TILE_ROWS
    owner = torch.arange(n_groups, device=groups.device).repeat_interleave(per_group)
    number = torch.arange(len(owner), device=groups.device) - (per_group.cumsum(0) - per_group)[owner]
    end = counts.cumsum(0)[owner]
    first = end - counts[owner] + number * TILE_ROWS
    position = first[:, None] + torch.arange(TILE_ROWS, device=groups.device)
    entries = groups.argsort(stable=True)[position.minimum(end[:, None] - 1)]
    return entries, position < end[:, None], owner
