"""New starts for components that died or collapsed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.chunks import Chunk
from tmixture.density import Density, working_density
from tmixture.parameters import Parameters
from tmixture.reservoir import draw_sample

# Rows among which a poorly explained one is looked for. With thousands of components it takes time to explain more.
RESTART_ROWS = 1024
# The share of regularization in the scale of a component that counts as collapsed.
COLLAPSED = 0.25
# … and in that of one of its features as degenerate.
DEGENERATE = 0.5
# Components without rows count as ones with so few.
LEAST_ROWS = 1e-200


def failed_components(
    rows: np.ndarray, total_rows: float, parameters: Parameters, regularization: Tensor
) -> np.ndarray:
    """Mask (K,) of the components that died (less than half a row) or collapsed onto a point.

    A collapsed component has few rows, and a scale that is what regularization leaves of it. With about as many
    components as rows that is what every component looks like, and nothing is called failed.

    Args:
        rows: of each component (K,).
        total_rows: of all of them.
        parameters: that followed from them.
        regularization: (d,), see `Rules`.
    """
    if total_rows < 2 * parameters.n_components:
        return np.zeros(len(rows), dtype=bool)
    few = rows < max(2, 0.1 * total_rows / parameters.n_components)
    if not few.any():
        return few
    share = share_of_regularization(rows, total_rows, parameters, regularization).mean(1)
    return (rows < 0.5) | ((share >= COLLAPSED) & few)


def share_of_regularization(
    rows: np.ndarray, total_rows: float, parameters: Parameters, regularization: Tensor
) -> np.ndarray:
    """How much of the scale of each component and feature is regularization, from 0 to 1: (K, d)."""
    precisions = parameters.scale.precisions(parameters.n_features) * regularization.to(parameters.means.device)
    share = precisions.cpu().numpy()
    if not parameters.scale.per_component:
        return np.broadcast_to(share, (len(rows), share.shape[1]))
    return share * (total_rows / parameters.n_components / rows.clip(min=LEAST_ROWS))[:, None]


def degenerate_components(
    rows: np.ndarray, total_rows: float, parameters: Parameters, regularization: Tensor
) -> dict[int, list[int]]:
    """Components with next to no variance of their own in some features, which other components have, and in which.

    Such a component has found rows of equal values, such as a rounded measurement. Its likelihood has no bound but the
    regularization, so that it wins against sound ones whatever it means.
    """
    share = share_of_regularization(rows, total_rows, parameters, regularization) > DEGENERATE
    share = share & ~share.all(0)
    return {k: np.flatnonzero(share[k]).tolist() for k in np.flatnonzero(share.any(1)).tolist()}


@torch.no_grad()
def poorly_explained(
    chunks: Iterable[Chunk],
    parameters: Parameters,
    count: int,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    synchronize: bool = False,
) -> Tensor:
    """Rows to restart components from, at least `count` where the data has as many of unknown class: (m, d).

    They are drawn at random from the worse-explained half of a random sample. The very worst rows are no good start:
    they are the outliers that the mixture exists to ignore.
    """
    size = min(4 * parameters.n_components, max(4 * count, RESTART_ROWS))
    sample = draw_sample(map(free_rows, chunks), size, dtype, generator, shared=synchronize)
    if sample.rows == 0:
        return sample.x
    density = working_density(parameters, dtype)
    order = density.log_likelihood(sample.x).argsort()
    worse = sample.x[order[: max(1, len(order) // 2)]]
    worse = worse[torch.randperm(len(worse), generator=generator).to(worse.device)]
    return distributed.from_first_process(worse) if synchronize else worse


def free_rows(chunk: Chunk) -> Chunk:
    """The rows that may belong to any component, and of which no value is missing."""
    free = ~chunk.x.isnan().any(1) if chunk.allowed is None else chunk.allowed.all(1) & ~chunk.x.isnan().any(1)
    return Chunk(chunk.x, chunk.weight) if free.all() else Chunk(chunk.x, chunk.weight).take(free)


def reseed(parameters: Parameters, components: list[int], candidates: Tensor) -> tuple[Parameters, Tensor]:
    """Give each of the components a new start on one of the candidates.

    It takes the scale and ν of the component that is responsible for its new mean, and shares that one's weight.

    Returns:
        The parameters, and the component (K,) that each component now takes its scale from.
    """
    density = Density(parameters, parameters.means.dtype)
    index = torch.tensor(components, device=candidates.device)
    seeds = candidates[torch.arange(len(components), device=candidates.device) % len(candidates)]
    density.log_weights[index] = -float("inf")
    source = torch.arange(parameters.n_components, device=candidates.device)
    if len(components) < parameters.n_components:
        source[index] = density.best(seeds)
    restarted = parameters.take(source)
    weights = restarted.weights / sharers(source)
    means = restarted.means.index_copy(0, index, seeds.to(restarted.means.dtype))
    return replace(restarted, weights=weights / weights.sum(), means=means), source


def sharers(source: Tensor) -> Tensor:
    """How many components take from the same source: (K,) → (K,)."""
    return torch.bincount(source, minlength=len(source))[source]
