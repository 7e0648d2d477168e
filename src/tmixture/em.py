"""Expectation-maximization: the E-step, and its iteration with the M-step until a stopping rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tmixture import distributed
from tmixture.accumulation import accumulate, accumulate_incomplete, no_statistics
from tmixture.data.chunks import Chunk
from tmixture.density import working_density
from tmixture.dof import Leaps
from tmixture.maximization import Rules, maximization, penalty
from tmixture.numerics import accumulation_dtype
from tmixture.parameters import Parameters
from tmixture.reseeding import failed_components, poorly_explained, reseed
from tmixture.statistics import SufficientStatistics

# The variance of a feature, relative to what other features leave of it in a component, that float32 can tell apart.
NEARLY_SINGULAR = 5e4
# Components with more rows than this are alive beyond doubt.
ALIVE = 1e-6
# A step, in nats per row, after which a learned ν may leap.
SLOW = 1e-3


@dataclass(frozen=True)
class Step:
    """The state of a fit: the parameters reached, and the statistics and the objective under them."""

    parameters: Parameters
    statistics: SufficientStatistics
    objective: float
    """The mean log-likelihood less the `penalty`."""
    n_iter: int
    converged: bool
    reseeded: list[int]
    """Components that were given a new start to reach these parameters."""


EStep = Callable[[Parameters, float | None], SufficientStatistics]
"""Statistics of all data under parameters, given the mean log-likelihood before the M-step that led to them, if any."""


def expectation(
    chunks: Iterable[Chunk], parameters: Parameters, rules: Rules, dtype: torch.dtype
) -> SufficientStatistics:
    """The E-step: sufficient statistics of all chunks under the parameters (of all processes, where distributed).

    Args:
        chunks: the data.
        parameters: current parameters, best in float64.
        rules: used for what must be accumulated.
        dtype: of the arithmetic on chunks; float64 is used where float32 would cancel.
    """
    if is_nearly_singular(parameters, rules):
        dtype = accumulation_dtype(parameters.means.device)
    density = working_density(parameters, dtype, apart=True)
    statistics = no_statistics(density)
    for chunk in chunks:
        if rules.allow_missing:
            incomplete = chunk.x.isnan().any(1)
            accumulate_incomplete(statistics, density, chunk.take(incomplete), learn_dof=bool(rules.learn_dof))
            chunk = chunk.take(~incomplete)
        accumulate(statistics, density, chunk, learn_dof=bool(rules.learn_dof))
    if rules.distributed:
        distributed.sum_in_place(statistics.sums())
    return statistics


def is_nearly_singular(parameters: Parameters, rules: Rules) -> bool:
    """Whether rows lie so close to a subspace that what is left beside it drowns in the rounding errors of float32.

    That is the case for one-hot, compositional and collinear features.
    """
    if not parameters.scale.correlates:
        return False
    precisions = parameters.scale.precisions(parameters.n_features)
    return bool((precisions * rules.variance).max() > NEARLY_SINGULAR)


def iterate(
    chunks: Iterable[Chunk],
    parameters: Parameters,
    rules: Rules,
    *,
    dtype: torch.dtype,
    max_iter: int,
    tol: float,
    generator: torch.Generator | None,
    max_reseeds: int = 3,
    e_step: EStep | None = None,
) -> Iterator[Step]:
    """Run EM, yielding the state after every E-step, which is `e_step` if given and else `expectation`.

    Stops when `what_is_left` of the objective is at most `tol`, or after `max_iter` M-steps. A component that dies or
    collapses onto a point is re-seeded, at most `max_reseeds` times. A learned ν leaps ahead now and then, and back if
    the objective says so.
    """
    parameters = parameters.with_tails()
    history: list[float] = []  # since the last new start
    leaps = Leaps(rules.dof_bounds) if rules.learn_dof and e_step is None else None
    before_leap: Parameters | None = None
    reseeds = np.zeros(parameters.n_components, dtype=int)
    reseeded: list[int] = []
    total_rows, n_present = 1.0, parameters.n_components
    for n_iter in range(max_iter + 1):
        if e_step:
            before = history[-1] + float(penalty(parameters, rules, total_rows)) if history else None
            statistics = e_step(parameters, before)
        else:
            statistics = expectation(chunks, parameters, rules, dtype)
        objective, total_rows, rows = on_host(statistics, penalty(parameters, rules, statistics.rows))
        if leaps and before_leap and objective < history[-1]:
            leaps.shorten()
            parameters = before_leap
            statistics = expectation(chunks, parameters, rules, dtype)
            objective, total_rows, rows = on_host(statistics, penalty(parameters, rules, statistics.rows))
        before_leap = None
        history.append(objective)
        converged = what_is_left(history) <= tol
        yield Step(parameters, statistics, objective, n_iter, converged, reseeded)
        if converged or n_iter == max_iter:
            return
        parameters = maximization(statistics, parameters, rules, all_alive=rows.min() > ALIVE)
        failing = failed_components(rows, total_rows, parameters, rules.regularization) & (reseeds < max_reseeds)
        if rules.kept is not None:
            failing &= ~rules.kept.numpy()
        if rules.weight_rows < 0:
            present = rows + rules.weight_rows > 0
            failing &= present
            if present.sum() != n_present:  # the prior of the weights is that of those that are left
                n_present, history = int(present.sum()), []
        reseeded = np.flatnonzero(failing).tolist()
        if reseeded:
            reseeds += failing
            candidates = poorly_explained(chunks, parameters, len(reseeded), dtype, generator, rules.distributed)
            reseeded = reseeded if len(candidates) else []  # where every row has its class
        if reseeded:
            parameters = reseed(parameters, reseeded, candidates)[0]
            history = []
        elif leaps and is_slow(history) and (dof := leaps.next(parameters.dof)) is not None:
            before_leap, dof = parameters, rules.unless_frozen(dof, parameters.dof)
            parameters = parameters.followed_by(parameters.weights, parameters.means, parameters.scale, dof)
            settled = replace(rules, learn_dof=False)  # the scales follow, before the leap is judged
            parameters = maximization(expectation(chunks, parameters, settled, dtype), parameters, settled)


def is_slow(history: list[float]) -> bool:
    """Whether the components have found their rows, and only details are left, such as ν."""
    return len(history) > 1 and history[-1] - history[-2] < SLOW


def what_is_left(history: list[float]) -> float:
    """How much further the last of these numbers will rise, by Aitken's extrapolation of a geometric series.

    The last step says little about that: EM slows down to steps far smaller than what is left (Böhning et al. 1994).
    Of the last three extrapolations the largest counts, as a single step may be small by chance.

    Args:
        history: of an objective that rises, but for rounding errors.
    """

    def extrapolated(a: float, b: float, c: float) -> float:
        before, step = b - a, c - b
        if before <= 0 or step <= 0:  # no more than rounding errors
            return max(abs(before), abs(step))
        return step * step / (before - step) if step < before else math.inf

    last = history[-5:]
    return max(map(extrapolated, last, last[1:], last[2:])) if len(last) == 5 else math.inf


def on_host(statistics: SufficientStatistics, penalty: Tensor | None = None) -> tuple[float, float, np.ndarray]:
    """The mean log-likelihood less a penalty, and the rows, all and those of each component (K,).

    All that an iteration decides by is fetched at once, because a GPU comes to a halt for it.
    """
    sums = [statistics.log_likelihood, statistics.weight, statistics.rows, penalty]
    parts = [part[None] for part in sums if part is not None]
    numbers = torch.cat([*parts, statistics.responsibility]).tolist()
    log_likelihood, weight, rows = numbers[:3]
    taken = 0.0 if penalty is None else numbers[3]
    return log_likelihood / weight - taken, rows, np.array(numbers[len(parts) :]) * (rows / weight)
