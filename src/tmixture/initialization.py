"""Starting parameters: k-means, k-means++, random rows, or whatever is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.chunks import Chunk, Chunks, chunk_size
from tmixture.em import expectation
from tmixture.maximization import Rules, maximization
from tmixture.numerics import accumulation_dtype, exact
from tmixture.parameters import Parameters
from tmixture.reservoir import draw_sample
from tmixture.sampling import Sample, completed, sample_size, without_stray_rows
from tmixture.scales import Scale

# Elements of a block of rows, or of their distances from all centres.
DISTANCE_ELEMENTS = 2**23
# Of Lloyd's algorithm.
LLOYD_ROUNDS = 20
# k-means++ draws its centres in at most this many rounds.
SEED_ROUNDS = 64
# … from this many rows per component.
SEED_ROWS = 128
# What a background begins with at least.
LEAST_WEIGHT = 0.01
# Rows without missing values per component that a start is found from alone.
COMPLETE_ROWS = 10
# M-steps from given responsibilities of a structure that needs several.
GRADUAL_STEPS = 10


def kmeans(x: Tensor, weight: Tensor, n_components: int, generator: torch.Generator | None) -> Tensor:
    """Centres (K, d) by Lloyd's algorithm, through faiss on a CPU, from the seeds of k-means++."""
    seeds = kmeans_plus_plus(x, weight, n_components, generator)
    if x.device.type != "cpu":
        return lloyd(x, weight, seeds)
    # In units of the largest value: faiss ends the process when a square overflows.
    unit = 2.0 ** math.frexp(float(x.abs().max()))[1]
    rows, start = (np.ascontiguousarray((part.double() / unit).float().numpy()) for part in (x, seeds))
    clustering = faiss.Kmeans(
        x.shape[1], n_components, niter=LLOYD_ROUNDS, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )
    clustering.train(rows, weights=weight.float().numpy(), init_centroids=start)
    return torch.from_numpy(np.array(clustering.centroids)).to(x) * unit


def lloyd(x: Tensor, weight: Tensor, centres: Tensor) -> Tensor:
    """Centres (K, d) by Lloyd's algorithm on the device of the rows; one that loses its rows stays where it is."""
    block = max(1, DISTANCE_ELEMENTS // x.shape[1])
    for _ in range(LLOYD_ROUNDS):
        sums, mass = exact(torch.zeros_like(centres)), exact(centres.new_zeros(len(centres), 1))
        for rows, w in zip(x.split(block), exact(weight).split(block)):
            labels = nearest(rows, centres)
            mass.index_add_(0, labels, w[:, None])
            sums.index_add_(0, labels, rows * w[:, None])
        centres = torch.where(mass > 0, sums / mass, centres).to(x)
    return centres


def kmeans_plus_plus(
    x: Tensor, weight: Tensor, n_components: int, generator: torch.Generator | None, known: Tensor | None = None
) -> Tensor:
    """Rows (K, d) drawn in proportion to weight × squared distance to those drawn before (Arthur et al. 2007).

    Of several such rows the one is taken that leaves the least Σ weight × squared distance (Arthur et al.'s greedy
    variant, as in scikit-learn, with three times its 2 + ⌊log K⌋ candidates). One is taken after the other up to
    K = 64, and in 64 rounds beyond, as in k-means‖ (Bahmani et al. 2012). The draws know the rows by their place along
    a random direction: with one seed they are the same in whatever order the rows come, and for repeated rows as for
    integer weights. `known` centres (C, d) count as drawn before.
    """
    direction = torch.randn(x.shape[1], generator=generator, dtype=torch.float64).to(x)
    order = (x @ direction).argsort()
    x, mass = x[order], weight.double().cpu()[order.cpu()]
    if len(x) > SEED_ROWS * n_components:
        steps = (torch.arange(SEED_ROWS * n_components) + 0.5) / (SEED_ROWS * n_components)
        x = x[torch.searchsorted(mass.cumsum(0), steps * mass.sum()).to(x.device)]
        mass = torch.ones(len(x), dtype=torch.float64)
    judges = slice(None, None, math.ceil(len(x) / (SEED_ROWS * SEED_ROUNDS)))
    n_candidates = 3 * (2 + int(math.log(n_components)))
    closest, centres = torch.full_like(mass, torch.inf), x[:0]
    if known is not None and len(known):
        closest = distance_to_nearest(x, known).double().cpu()
    for taken in torch.arange(n_components).tensor_split(min(n_components, SEED_ROUNDS)):
        score = torch.where(closest.isinf(), mass, mass * closest)
        if not score.sum() > 0:  # every row coincides with a centre
            score = mass
        cumulative = score.cumsum(0)
        targets = torch.rand(len(taken), n_candidates, generator=generator, dtype=torch.float64) * cumulative[-1]
        drawn = torch.searchsorted(cumulative, targets, right=True).clamp(max=len(x) - 1)
        left = potential(x[judges], mass[judges], closest[judges], x[drawn.flatten().to(x.device)]).view(drawn.shape)
        new = x[drawn.gather(1, left.argmin(1, keepdim=True))[:, 0].to(x.device)]
        closest = torch.minimum(closest, distance_to_nearest(x, new).double().cpu())
        centres = torch.cat([centres, new])
    return centres


def potential(x: Tensor, mass: Tensor, closest: Tensor, candidates: Tensor) -> Tensor:
    """Σ_i mass_i·min(closest_i, ‖x_i − c‖²) with each candidate c as a further centre: (n, d), (c, d) → (c,)."""
    norms, total = candidates.square().sum(1), torch.zeros(len(candidates), dtype=torch.float64)
    block = max(1, DISTANCE_ELEMENTS // len(candidates))
    for rows, m, so_far in zip(x.split(block), mass.to(x).split(block), closest.to(x).split(block)):
        distance = torch.addmm(norms, rows, candidates.T, alpha=-2).add_(rows.square().sum(1, keepdim=True))
        total += (m @ torch.minimum(distance.clamp_(min=0), so_far[:, None])).cpu()
    return total


def distance_to_nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distance to the nearest centre, exactly zero on it: (n, d), (K, d) → (n,)."""
    return (x - centres[nearest(x, centres)]).square().sum(1)


def random_rows(x: Tensor, weight: Tensor, n_components: int, generator: torch.Generator | None) -> Tensor:
    """K different rows, in proportion to their weights."""
    return x[torch.multinomial(weight.double().cpu(), n_components, generator=generator).to(x.device)]


CENTRES: dict[str, Callable[[Tensor, Tensor, int, torch.Generator | None], Tensor]] = {
    "kmeans": kmeans,
    "kmeans++": kmeans_plus_plus,
    "random": random_rows,
}


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre: (n, d), (K, d) → (n,)."""
    norms = centres.square().sum(1)
    blocks = x.split(max(1, DISTANCE_ELEMENTS // len(centres)))
    return torch.cat([torch.addmm(norms, block, centres.T, alpha=-2).argmin(1) for block in blocks])


class Background(NamedTuple):
    """Where a background begins.

    Attributes:
        mean: (d,).
        rows: mask (m,) of the rows of the sample that it begins with.
    """

    mean: Tensor
    rows: Tensor


class TooFewRowsError(ValueError):
    """There are fewer rows than components, in all processes together."""


def rows_to_start_from(
    chunks: Chunks, n_components: int, dtype: torch.dtype, generator: torch.Generator | None, *, shared: bool
) -> Sample:
    """The rows that initialisation works on: `random_sample`, `cleaned`."""
    return cleaned(random_sample(chunks, n_components, dtype, generator, shared=shared), n_components)


def cleaned(sample: Sample, n_components: int) -> Sample:
    """A sample without gaps and stray rows."""
    return without_stray_rows(completed(sample, COMPLETE_ROWS * n_components), n_components)


def random_sample(
    chunks: Chunks, n_components: int, dtype: torch.dtype, generator: torch.Generator | None, *, shared: bool
) -> Sample:
    """A sample of the rows, enough of them for a start, the same in all processes that share their data.

    Raises:
        TooFewRowsError: there are fewer rows than components.
    """
    size = sample_size(n_components, chunks.n_features)
    sample = draw_sample(chunks, size, dtype, generator, shared=shared, allow_missing=chunks.allow_missing)
    if sample.rows == 0:
        raise ValueError("sample_weight is zero for every row" if chunks.rows else "data is empty in all processes")
    require_rows(sample.rows, n_components)
    return sample


def require_rows(rows: int, n_components: int) -> None:
    """Raise a `TooFewRowsError` if there are fewer rows than components."""
    if rows < n_components:
        raise TooFewRowsError(
            f"data has {rows} rows with positive weight, but n_components={n_components} needs at least as many"
        )


def start(
    init: str | Tensor,
    sample: Sample,
    given: Chunks | None,
    scale: Scale,
    dof: Tensor,
    rules: Rules,
    variance: Tensor,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    background: Background | None = None,
) -> Parameters:
    """The parameters that EM starts from, the same in all processes that share their data.

    Args:
        init: as for `from_centres`.
        sample: rows to initialise from.
        given: the data with responsibilities to start from instead, if there are any.
        scale: of components without rows.
        dof: (K,).
        rules: of the M-step.
        variance: (d,), of the sample.
        dtype: of the arithmetic on chunks.
        generator: source of randomness.
        background: where the last component begins, if that is a background.
    """
    if given is not None:
        rows = random_rows(sample.x, sample.weight, len(dof), generator)
        if background is not None:
            rows[-1] = background.mean
        if rules.distributed:
            rows = distributed.from_first_process(rows)  # generators may differ
        return from_responsibilities(given, uniform(rows, scale, dof), rules, variance, dtype)
    parameters = from_centres(init, sample, scale, dof, rules, variance, generator, background)
    if rules.distributed:
        distributed.broadcast_in_place(list(parameters.tensors().values()))
    return parameters


def from_centres(
    init: str | Tensor,
    sample: Sample,
    scale: Scale,
    dof: Tensor,
    rules: Rules,
    variance: Tensor,
    generator: torch.Generator | None,
    background: Background | None = None,
) -> Parameters:
    """Parameters from hard clusters around centres, found in the sample or given as a tensor (K, d).

    A background begins with the rows that have no others near by.

    Args:
        init: a key of `CENTRES` or the centres.
        sample: rows to work on.
        scale: of components without rows.
        dof: (K,).
        rules: of the M-step.
        variance: (d,), of the data, to which scales of very small clusters shrink.
        generator: source of randomness.
        background: as of `start`.
    """
    shift = sample.x.mean(0)
    x = sample.x - shift
    K = len(dof)
    n_centres, nowhere = K, torch.zeros_like(x[:, 0], dtype=torch.bool)
    if background is not None:
        n_centres, nowhere = K - 1, background.rows
    if isinstance(init, str):
        centres = CENTRES[init](x[~nowhere], sample.weight[~nowhere], n_centres, generator)
    else:
        centres = init[:n_centres].to(x) - shift
    labels = nearest(x, centres).masked_fill(nowhere, n_centres)
    means = exact(centres + shift if isinstance(init, str) else init[:n_centres].to(x.device))
    if background is not None:
        means = torch.cat([means, background.mean.to(means)[None]])
    base = uniform(means, scale, dof)
    d = x.shape[1]
    chunks = Chunks(
        sample.x, d, x.device, chunk_size(K, d), sample_weight=sample.weight, responsibilities=labels, n_components=K
    )
    rules = replace(rules, distributed=False)
    parameters = from_responsibilities(chunks, base, rules, variance, sample.x.dtype)
    if background is not None:  # a weight of zero stays zero
        weights = parameters.weights.clamp(min=LEAST_WEIGHT)
        parameters = replace(parameters, weights=weights / weights.sum())
    return parameters if isinstance(init, str) else replace(parameters, means=base.means)


def from_responsibilities(
    chunks: Iterable[Chunk], base: Parameters, rules: Rules, variance: Tensor, dtype: torch.dtype
) -> Parameters:
    """The Gaussian M-step from the responsibilities that the chunks carry; components without any stay as in `base`.

    A cluster of one or two rows would start as a spike from which EM cannot widen it, so every component is credited
    with a few more rows of the data's own variance.
    """
    credit = prior_rows(base.scale, base.n_features)
    rules = replace(rules, scale_update="classic", learn_dof=False, prior_rows=credit, prior_variance=variance)
    parameters = base
    for _ in range(1 if base.scale.maximises else GRADUAL_STEPS):
        parameters = maximization(expectation(chunks, parameters, rules, dtype), parameters, rules)
    return parameters


def prior_rows(scale: Scale, n_features: int) -> float:
    """Rows to credit a component without data with: twice the scale parameters that it has per feature."""
    return 2 * scale.n_parameters(1, n_features) / n_features


def uniform(means: Tensor, scale: Scale, dof: Tensor) -> Parameters:
    """Equal weights and the given means (K, d), scales and dof (K,), in float64 where the device has it."""
    means = means.to(accumulation_dtype(means.device))
    weights = means.new_full((len(means),), 1 / len(means))
    return Parameters(weights, means, scale.to(means.dtype), dof.to(means))
