"""What a chunk of rows adds to the sufficient statistics: its responsibilities, outlier weights and moments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tmixture.data.chunks import CHUNK_ELEMENTS, Chunk
from tmixture.density import Density, negligible, ruled_out
from tmixture.missing import Observation, observe
from tmixture.numerics import column_sums, exact
from tmixture.scales.base import Moments, Shares
from tmixture.statistics import SufficientStatistics


def no_statistics(density: Density) -> SufficientStatistics:
    """The statistics of no rows under these densities."""
    offset = density.scale.reference(density.means, density.apart)
    return SufficientStatistics.about_origin(density.scale, exact(density.origin), density.means, offset)


def accumulate(statistics: SufficientStatistics, density: Density, chunk: Chunk, *, learn_dof: bool) -> Tensor:
    """Add the statistics of a chunk, in place, and return its responsibilities (n, K)."""
    features = density.features_in_turn(chunk.x)
    if chunk.responsibilities is None:
        distances, logs, joint = density.relevant(features, chunk.allowed)
        log_likelihood, responsibilities = evidence(joint)
        precision = density.outlier_weights(distances)
    else:
        responsibilities, logs = chunk.responsibilities.to(features.dtype), None
        log_likelihood = features.new_zeros(len(features))
        precision = features.new_ones(1)
    shares = responsibilities
    if chunk.weight is not None:
        shares = responsibilities * chunk.weight.to(features.dtype)[:, None]
    weighted = shares * precision
    counts = column_sums(shares)
    statistics.add_rows(log_likelihood, chunk.weight)
    statistics.add_shares(counts, column_sums(weighted))
    if learn_dof and logs is not None:
        of_nearest = exact(density.law.most_weight).log() + density.expected_log_correction  # E[log U] where δ = 0
        statistics.log_mass += counts * of_nearest - column_sums(logs.mul_(shares))
    moments = Moments(statistics.first, statistics.scatter, density.means, density.apart)
    density.scale.accumulate(moments, features, Shares(shares, weighted))
    return responsibilities


def evidence(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x_i) (…, n) and responsibilities (…, n, K), exactly zero where negligible, from log π_k·T_k(x_i) (…, n, K).

    These take the place of the latter.
    """
    top = joint.amax(-1, keepdim=True)
    # Exact zeros let the M-step skip most rows. They come after the exponential, which takes several times as long in
    # float32 where it has an infinity to work on or a denormal number to make. The cut is on r and not on r·u: an
    # outlier's u is tiny, but its share r·u·(x−μ)(x−μ)ᵀ of the scatter is as large as anybody's.
    relative = joint.sub_(top)
    if relative.dtype is not torch.float64:
        relative.clamp_(min=math.log(negligible(joint.dtype)))
    relative.exp_()
    torch.threshold_(relative, 1.001 * negligible(joint.dtype), 0.0)
    total = relative.sum(-1, keepdim=True)
    return (top + total.log())[..., 0], relative.div_(total)


def accumulate_incomplete(statistics: SufficientStatistics, density: Density, chunk: Chunk, *, learn_dof: bool) -> None:
    """Add the statistics of rows of which values are missing, NaN, in place, with their expectations in their place."""
    block = max(1, CHUNK_ELEMENTS // density.means.numel())
    for rows in torch.arange(len(chunk.x), device=chunk.x.device).split(block):
        observation = observe(density, chunk.x[rows])
        precision = observation.outlier_weights()
        if chunk.responsibilities is None:
            joint = observation.log_prob() + density.log_weights
            allowed = None if chunk.allowed is None else chunk.allowed[rows]
            log_likelihood, responsibilities = evidence(ruled_out(joint, allowed))
        else:
            responsibilities = chunk.responsibilities[rows].to(precision)
            log_likelihood, precision = precision.new_zeros(len(rows)), torch.ones_like(precision)
        weight = None if chunk.weight is None else chunk.weight[rows]
        shares = responsibilities if weight is None else responsibilities * weight.to(responsibilities)[:, None]
        statistics.add_rows(log_likelihood, weight)
        statistics.responsibility += shares.sum(0)
        statistics.mass += (shares * precision).sum(0)
        if learn_dof:
            statistics.log_mass += (shares * (precision.log() + observation.expected_log_correction())).sum(0)
        _add_moments(statistics, density, observation, Shares(shares, shares * precision))


def _add_moments(statistics: SufficientStatistics, density: Density, observation: Observation, shares: Shares) -> None:
    """Add the moments of completed rows, which differ between the components, and what completion leaves open."""
    roots = observation.covariance_roots(shares.responsibility)
    for k in range(len(density.means)):
        component = torch.tensor([k], device=density.means.device)
        local = density.take(component)
        local.apart = (density.apart == k).nonzero()[:1, 0] * 0
        part = no_statistics(local)
        points = local.scale.features(observation.completed[:, k])
        own = Shares(shares.responsibility[:, k, None], shares.weight[:, k, None])
        local.scale.accumulate(Moments(part.first, part.scatter, local.means, local.apart), points, own)
        # What is open adds a covariance about whatever point, and no rows.
        spread = local.scale.features(torch.cat([roots[k], -roots[k]]))
        half = Shares(roots.new_zeros(len(spread), 1), roots.new_full((len(spread), 1), 0.5))
        nowhere = Moments(part.first, part.scatter, torch.zeros_like(local.means), local.apart[:0])
        local.scale.accumulate(nowhere, spread, half)
        statistics.add(part, component, density.scale)
