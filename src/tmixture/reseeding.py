"""New starts for components that died or collapsed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tmixture import distributed
from tmixture.chunks import Chunk
from tmixture.density import Density, working_density
from tmixture.parameters import Parameters
from tmixture.sampling import draw_sample

# Rows among which a poorly explained one is looked for. With thousands of components it takes time to explain more.
RESTART_ROWS = 1024


def failed_components(rows: Tensor, total_rows: float, parameters: Parameters, regularization: float) -> Tensor:
    """Mask (K,) of the components that died (less than half a row) or collapsed onto a point.

    A collapsed component has its scale at the floor that regularization leaves, and few rows. With about as many
    components as rows that is what every component looks like, and nothing is called failed.

    Args:
        rows: of each component (K,), on the host.
        total_rows: of all of them.
        parameters: that followed from them.
        regularization: of their scales.
    """
    if total_rows < 2 * parameters.n_components:
        return torch.zeros_like(rows, dtype=torch.bool)
    few = rows < max(2, 0.1 * total_rows / parameters.n_components)
    if not few.any():  # a matrix of full structure must be inverted for its trace
        return few
    variance = parameters.scale.mean_variance(parameters.n_features).cpu()
    return (rows < 0.5) | ((variance <= 4 * regularization) & few)


@torch.no_grad()
def poorly_explained(
    chunks: Iterable[Chunk],
    parameters: Parameters,
    count: int,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    synchronize: bool = False,
) -> Tensor:
    """Rows to restart components from, at least `count` where the data has as many: (m, d).

    They are drawn at random from the worse-explained half of a random sample. The very worst rows are no good start:
    they are the outliers that the mixture exists to ignore.
    """
    size = min(4 * parameters.n_components, max(4 * count, RESTART_ROWS))
    sample = draw_sample(chunks, size, dtype, generator, shared=synchronize)
    density = working_density(parameters, dtype)
    order = density.log_likelihood(sample.x).argsort()
    worse = sample.x[order[: max(1, len(order) // 2)]]
    worse = worse[torch.randperm(len(worse), generator=generator).to(worse.device)]
    return distributed.from_first_process(worse) if synchronize else worse


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
