"""The E-step on candidate sets in batched matrix products, for the structures that expand squares.

Rows of one home have the same candidates. With thousands of homes, a matrix product for each of them would spend its
time on everything but arithmetic, so the rows of a home are cut into tiles of a few rows, and many tiles are worked on
at once. The moments are sums over the pairs of a row and a component that has a share in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture import accumulation
from tmixture.data.chunks import CACHED_ELEMENTS, Chunk
from tmixture.density import EXPANSION_ERROR, Density, relevance_threshold
from tmixture.scales.base import EXPANDED_LIMIT
from tmixture.scales.expanded import ExpandedScale
from tmixture.scales.pairs import TILE_ROWS, rows_at, tiles
from tmixture.statistics import SufficientStatistics


def accumulate(
    statistics: SufficientStatistics,
    density: Density,
    chunk: Chunk,
    neighbours: Tensor,
    homes: Tensor,
    *,
    learn_dof: bool,
) -> Tensor:
    """Add the statistics of a chunk, in place, and return the best candidate (n,) of each row.

    Args:
        statistics: of K components, about `density.scale.reference`.
        density: of a structure that expands squares.
        chunk: n rows, with weights or without.
        neighbours: (K, C), the candidates of each home.
        homes: (n,), integers.
        learn_dof: whether E[log U] is needed.
    """
    exact = statistics.mass.dtype
    best, log_likelihood = torch.empty_like(homes), density.origin.new_empty(len(homes))
    counts, pairs = torch.zeros_like(statistics.mass), []
    # As many tiles at a time as have temporaries in a CPU's caches.
    block = CACHED_ELEMENTS // ((2 * neighbours.shape[1] + TILE_ROWS) * density.scale.width(density.n_features))
    for rows, filled, home in zip(*(part.split(max(1, block)) for part in tiles(homes, len(neighbours)))):
        candidates = neighbours[home]
        distances, joint = relevant(density, rows_at(chunk.x, rows), home, candidates)
        evidence, responsibilities = accumulation.evidence(joint.flatten(0, 1))
        responsibilities = responsibilities.view(joint.shape)
        log_likelihood[rows] = evidence.view(rows.shape)
        best[rows] = candidates.gather(1, responsibilities.argmax(2)).to(best.dtype)
        weight = filled.to(joint.dtype) if chunk.weight is None else filled * chunk.weight[rows].to(joint.dtype)
        shares = responsibilities * weight[:, :, None]
        precision = density.outlier_weights(distances, candidates[:, None])
        weighted = shares * precision
        counts.index_put_((candidates,), shares.sum(1).to(exact), accumulate=True)
        statistics.mass.index_put_((candidates,), weighted.sum(1).to(exact), accumulate=True)
        if learn_dof:
            logs = (shares * precision.log()).sum(1).to(exact)
            statistics.log_mass.index_put_((candidates,), logs, accumulate=True)
        tile, row, candidate = weighted.nonzero(as_tuple=True)
        pairs.append((rows[tile, row], candidates[tile, candidate], weighted[tile, row, candidate]))
    statistics.responsibility += counts
    if learn_dof:
        statistics.log_mass += counts * density.expected_log_correction
    statistics.add_rows(log_likelihood, chunk.weight)
    _add_moments(statistics, density, chunk.x, *(torch.cat(part) for part in zip(*pairs)))
    return best


def relevant(density: Density, x: Tensor, home: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """δ and log π_k·T_k of tiles from their candidates, both (B, m, C), exact where a responsibility may matter.

    Squares are expanded about the mean of the home, which is near the rows. Candidates far away from it, measured by
    their own scale, lose digits to that and are measured by differences where they may matter, as in
    `Density.relevant`.

    Args:
        density: of all components.
        x: (B, m, d), the rows of B tiles.
        home: (B,), the component that a tile's rows have in common.
        candidates: (B, C).
    """
    scale, components = _expanded(density), candidates[:, None]
    reference = rows_at(density.means, home)[:, None]
    y = density.centred(x) - reference
    means = rows_at(density.means, candidates) - reference
    largest = torch.finfo(means.dtype).max
    distances = scale.take(candidates).mahalanobis(scale.features(y), means).clamp_(max=largest)
    terms = scale.whiten(means, candidates).square().sum(2)[:, None]
    error = EXPANSION_ERROR * torch.finfo(terms.dtype).eps * terms
    error = torch.where(terms > EXPANDED_LIMIT * density.n_features, error, 0.0)
    joint = density.joint(distances + error, components)  # at the least
    threshold = relevance_threshold(joint.amax(2, keepdim=True))
    possible = (density.joint((distances - error).clamp_(min=0), components) > threshold) & (error > 0)
    tile, row, candidate = possible.nonzero(as_tuple=True)
    whose = candidates[tile, candidate]
    by_differences = scale.whiten(y[tile, row] - means[tile, candidate], whose).square().sum(1).clamp_(max=largest)
    distances[tile, row, candidate] = by_differences
    joint[tile, row, candidate] = density.joint(by_differences, whose)
    return distances, joint


def _add_moments(
    statistics: SufficientStatistics, density: Density, x: Tensor, rows: Tensor, components: Tensor, weight: Tensor
) -> None:
    """Add weight_p·[y, squares of y] with y = x_row − reference to the moments of the component of each pair p."""
    scale = _expanded(density)
    reference, width = density.reference, scale.width(density.n_features)
    moments = statistics.first.new_zeros(len(reference), width)
    for pairs in components.argsort(stable=True).split(max(1, CACHED_ELEMENTS // width)):
        owner = components[pairs]
        y = density.centred(rows_at(x, rows[pairs])) - rows_at(reference, owner)
        scale.add_points(moments, y, owner, weight[pairs])
    scale.add_moments(statistics.first, statistics.scatter, moments)


def _expanded(density: Density) -> ExpandedScale:
    assert isinstance(density.scale, ExpandedScale)
    return density.scale
