"""Truncated variational EM: an E-step that compares each row with a few promising components instead of all K.

Each row has a home, the component that was best when it was last looked at, and is compared with the C components
whose means are nearest to that of its home. Responsibilities over such a set C_i maximise the lower bound
F = Σ_i log Σ_{k ∈ C_i} π_k·T_k(x_i) of the log-likelihood, and the M-step raises F as long as the sets stay (Lücke &
Eggert 2010). Neighbours of good components find the better ones, as in Forster & Lücke (2018), "Can clustering scale
sublinearly with its clusters?"; but here all rows of one home share one set, so that a pass consists of matrix
products: N·C distances instead of N·K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture import accumulation, distributed, em, tiles
from tmixture.data.chunks import CHUNK_ELEMENTS, Chunk, Chunks, chunk_size
from tmixture.density import Density, working_density
from tmixture.initialization import nearest
from tmixture.maximization import Rules
from tmixture.parameters import Parameters
from tmixture.scales.expanded import ExpandedScale
from tmixture.statistics import SufficientStatistics

# Rows per home that are worth the overhead of its matrix products …
HOME_ROWS = 64
# … in chunks of at most so many elements: 128 MB in float32.
LARGE_CHUNK_ELEMENTS = 2**25
# Rows of which the exact best component is asked for.
CHECKED_ROWS = 2048


def rows_per_chunk(n_components: int, n_features: int) -> int:
    """Rows per chunk such that most homes have many rows in it."""
    many = min(HOME_ROWS * n_components, LARGE_CHUNK_ELEMENTS // n_features)
    return max(many, chunk_size(n_components, n_features))


@dataclass(frozen=True)
class CandidateSets:
    """What each row is compared with: the neighbours (K, C) of its home, one of the homes (N,)."""

    neighbours: Tensor
    homes: Tensor


class TruncatedExpectation:
    """The E-step on candidate sets that follow the parameters.

    In a new pass a row's home is the component that was best in the last one, and at the passes 1, 2, 4, 8 and so on
    neighbours are sought anew, as the means move ever less. That nearly always raises the bound, but need not: a pass
    that ends below the last bound is repeated with the sets of that bound, which then stay for a while, each time twice
    as long. So the bound never decreases.

    Args:
        chunks: the data, in the same order at every pass.
        rules: of the M-step.
        dtype: of the arithmetic on chunks.
        n_candidates: C.
    """

    chunks: Chunks
    dtype: torch.dtype
    n_candidates: int
    rules: Rules
    passes: int
    next_rest: int
    rest: int
    search_due: int

    def __init__(self, chunks: Chunks, rules: Rules, dtype: torch.dtype, n_candidates: int) -> None:
        self.chunks, self.rules, self.dtype, self.n_candidates = chunks, rules, dtype, n_candidates
        self.sets: CandidateSets | None = None
        self.best: Tensor | None = None
        self.passes = 0
        self.search_due = 1  # at the first move in or after this pass
        self.rest = 0  # passes for which the sets stay
        self.next_rest = 1

    def __call__(self, parameters: Parameters, bound: float | None) -> SufficientStatistics:
        """The E-step: sufficient statistics of all chunks, with the bound in place of the log-likelihood.

        Args:
            parameters: current parameters, best in float64.
            bound: what the mean bound was before the M-step that led to them; None if they come from elsewhere.
        """
        density = working_density(parameters, self.dtype, apart=True)
        self.passes += 1
        if self.sets is None or bound is None or self.rest == 0:
            sets = self._moved(density, anew=bound is None)
            statistics, best = self._pass(density, sets)
            if self.sets is None or bound is None or em.on_host(statistics)[0] >= bound:
                self.sets, self.best = sets, best
                return statistics
            self.rest, self.next_rest = self.next_rest, 2 * self.next_rest
        self.rest -= 1
        statistics, self.best = self._pass(density, self.sets)
        return statistics

    def disagreement(self, parameters: Parameters, generator: torch.Generator | None) -> float:
        """The share of the rows whose best candidate is not their best component, from a random sample of rows."""
        assert self.best is not None
        density = working_density(parameters, self.dtype)
        # A generator of its own: what is drawn later must not depend on the number of rows.
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, (), generator=generator)))
        counts = torch.zeros(2, device=self.best.device)
        row = 0
        for chunk in self.chunks:
            drawn = torch.rand(len(chunk.x), generator=generator, dtype=torch.float64) * len(self.best) < CHECKED_ROWS
            rows = drawn.nonzero()[:, 0].to(self.best.device)
            differ = density.best(chunk.x[rows]) != self.best[row + rows]
            counts += torch.stack([differ.sum(), torch.ones_like(differ).sum()])
            row += len(chunk.x)
        if self.rules.distributed:
            distributed.sum_in_place([counts])
        return float(counts[0] / counts[1])

    def _moved(self, density: Density, anew: bool) -> CandidateSets:
        """The sets for a new pass."""
        homes = self._nearest(density) if self.best is None else self.best
        if self.sets is not None and not anew and self.passes < self.search_due:
            return CandidateSets(self.sets.neighbours, homes)
        self.search_due = 2 * self.passes
        return CandidateSets(neighbours(density.means, self.n_candidates), homes)

    def _nearest(self, density: Density) -> Tensor:
        """Homes (N,) to begin with: the components of the nearest means."""
        homes = []
        for chunk in self.chunks:
            for rows in chunk.x.split(chunk_size(len(density.means), density.n_features)):
                homes.append(nearest(density.features(rows)[:, : density.n_features], density.means).int())
        return torch.cat(homes)

    def _pass(self, density: Density, sets: CandidateSets) -> tuple[SufficientStatistics, Tensor]:
        """Statistics of all rows, and the best candidate (N,) of each."""
        statistics = accumulation.no_statistics(density)
        best = torch.empty_like(sets.homes)
        row = 0
        for chunk in self.chunks:
            rows = slice(row, row + len(chunk.x))
            here = CandidateSets(sets.neighbours, sets.homes[rows])
            best[rows] = accumulate(statistics, density, chunk, here, learn_dof=bool(self.rules.learn_dof))
            row += len(chunk.x)
        if self.rules.distributed:
            distributed.sum_in_place(statistics.sums())
        return statistics, best


def accumulate(
    statistics: SufficientStatistics, density: Density, chunk: Chunk, sets: CandidateSets, *, learn_dof: bool
) -> Tensor:
    """Add the statistics of a chunk, in place, and return the best candidate (n,) of each row."""
    if isinstance(density.scale, ExpandedScale):
        return tiles.accumulate(statistics, density, chunk, sets.neighbours, sets.homes, learn_dof=learn_dof)
    # Products with matrices of full structure are large enough to be worth one for each home.
    best = torch.empty_like(sets.homes)
    block = chunk_size(sets.neighbours.shape[1], density.n_features)
    counts = torch.bincount(sets.homes, minlength=len(sets.neighbours)).tolist()
    for candidates, inhabitants in zip(sets.neighbours, sets.homes.argsort(stable=True).split(counts)):
        if len(inhabitants) == 0:
            continue
        local = density.take(candidates)
        part = accumulation.no_statistics(local)
        for rows in inhabitants.split(block):
            weight = None if chunk.weight is None else chunk.weight[rows]
            responsibilities = accumulation.accumulate(part, local, Chunk(chunk.x[rows], weight), learn_dof=learn_dof)
            best[rows] = candidates[responsibilities.argmax(1)].to(best.dtype)
        statistics.add(part, candidates, density.scale)
    return best


def neighbours(means: Tensor, count: int) -> Tensor:
    """Of each mean the nearest means, itself first: (K, d) → (K, count)."""
    K = len(means)
    norms = means.square().sum(1)
    found = []
    for block in torch.arange(K, device=means.device).split(max(1, CHUNK_ELEMENTS // K)):
        distances = torch.addmm(norms, means[block], means.T, alpha=-2)
        distances[torch.arange(len(block), device=means.device), block] = -float("inf")
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)
