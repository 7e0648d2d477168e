"""Starts of many small mixtures at once: what `initialization` finds for one data set, for each of many.

The random numbers are those of a single fit with the same seed, and the results are its own but for rounding. A data
set that needs more than its rows themselves (stray rows, a cluster that loses all of them) is left to a single fit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tmixture.initialization import LLOYD_ROUNDS, SEED_ROUNDS, SEED_ROWS
from tmixture.numerics import exact
from tmixture.sampling import MEDIAN_ROWS, sorted_columns

# A single fit looks at more rows than these in parts.
MOST_ROWS = min(MEDIAN_ROWS, SEED_ROWS * SEED_ROUNDS)
MOST_COMPONENTS = SEED_ROUNDS


class Starts(NamedTuple):
    """Where many fits begin.

    Attributes:
        labels: (B, n), the cluster of each row.
        variance: (B, d), of the features, as of `sampling.spread`.
        ordinary: (B,), which data sets these hold for.
    """

    labels: Tensor
    variance: Tensor
    ordinary: Tensor


def starts(x: Tensor, n_components: int, init: str | Tensor, generator: torch.Generator | None) -> Starts:
    """The starts of mixtures of the data sets in `x` (B, n, d), by a method, or from given centres (K, d)."""
    torch.randint(2**31 - 1, (), generator=generator)  # what a single fit draws its sample with
    ordinary, variance = ~_has_stray_rows(x), _variance(x)
    shift = x.mean(1, keepdim=True)
    y = x - shift
    if isinstance(init, Tensor):
        centres = init.to(y) - shift
    elif init == "kmeans":
        centres = _lloyd(y, _kmeans_plus_plus(y, n_components, generator))
    else:
        centres = _kmeans_plus_plus(y, n_components, generator)
    labels = _nearest(y, centres)
    counts = torch.nn.functional.one_hot(labels, n_components).sum(1)
    return Starts(labels, variance, ordinary & (counts > 0).all(1))


def _has_stray_rows(x: Tensor) -> Tensor:
    """Whether `sampling.without_stray_rows` might leave out any: (B,)."""
    distance = torch.linalg.vector_norm(x - _median(x), dim=2)
    return (distance > 100 * distance.median(1, keepdim=True).values).any(1)


def _variance(x: Tensor) -> Tensor:
    """As of `sampling.spread`."""
    centre = _median(x)
    distance = (x - centre).abs()
    reach = 10 * _median(distance, distance > 0)
    centred = exact((x - centre).clamp(-reach, reach))
    return (centred.square().mean(1) - centred.mean(1).square()).clamp(min=0)


def _median(x: Tensor, kept: Tensor | None = None) -> Tensor:
    """The lower median of each column of those values that are kept: (B, n, d) → (B, 1, d)."""
    kept = torch.ones_like(x, dtype=torch.bool) if kept is None else kept
    columns = torch.where(kept, x, torch.inf).transpose(0, 1).flatten(1)
    values = sorted_columns(columns).unflatten(1, (-1, x.shape[2])).transpose(0, 1)
    return values.gather(1, ((kept.sum(1, keepdim=True) + 1) // 2 - 1).clamp(min=0))


def _kmeans_plus_plus(x: Tensor, n_components: int, generator: torch.Generator | None) -> Tensor:
    """Centres (B, K, d), as of `initialization.kmeans_plus_plus` with equal weights."""
    direction = torch.randn(x.shape[2], generator=generator, dtype=torch.float64).to(x)
    x = _take(x, (x @ direction).argsort(1))
    if x.shape[1] > SEED_ROWS * n_components:
        steps = (torch.arange(SEED_ROWS * n_components) + 0.5) / (SEED_ROWS * n_components)
        counts = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)
        x = x[:, torch.searchsorted(counts, steps * x.shape[1]).to(x.device)]
    n_candidates = 3 * (2 + int(math.log(n_components)))
    closest = torch.full(x.shape[:2], torch.inf, dtype=torch.float64, device=x.device)
    centres = []
    for _ in range(n_components):
        score = torch.where(closest.isinf(), 1.0, closest)
        score = torch.where(score.sum(1, keepdim=True) > 0, score, 1.0)
        cumulative = score.cumsum(1)
        draws = torch.rand(1, n_candidates, generator=generator, dtype=torch.float64).to(x.device)
        drawn = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp(max=x.shape[1] - 1)
        candidates = _take(x, drawn)
        distances = _squared_distances(x, candidates)
        left = torch.minimum(distances, closest.to(x)[:, :, None]).sum(1)
        new = _take(candidates, left.argmin(1, keepdim=True))
        centres.append(new)
        closest = torch.minimum(closest, (x - new).square().sum(2).double())
    return torch.cat(centres, dim=1)


def _lloyd(x: Tensor, centres: Tensor) -> Tensor:
    """Centres (B, K, d), as of `initialization.lloyd`."""
    labels = None
    for _ in range(LLOYD_ROUNDS):
        before, labels = labels, _nearest(x, centres)
        if before is not None and torch.equal(labels, before):
            break
        share = torch.nn.functional.one_hot(labels, centres.shape[1]).to(x)
        counts = share.sum(1)[:, :, None]
        centres = torch.where(counts > 0, share.mT @ x / counts, centres)
    return centres


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre: (B, n, d), (B, K, d) → (B, n)."""
    norms = centres.square().sum(2)[:, None]
    return torch.baddbmm(norms, x, centres.mT, alpha=-2).argmin(2)


def _squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Of (B, n, d) from (B, m, d): (B, n, m)."""
    offsets = centres.square().sum(2, keepdim=True) + x.square().sum(2)[:, None]
    return torch.baddbmm(offsets, centres, x.mT, alpha=-2).clamp_(min=0).mT


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """The rows (B, m) of each data set: (B, n, d) → (B, m, d)."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
