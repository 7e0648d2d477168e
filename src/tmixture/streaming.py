"""Stepwise EM (Cappé & Moulines 2009): what a batch makes of the parameters and of the statistics behind them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tmixture import em, reseeding
from tmixture.data.chunks import Chunk, Chunks
from tmixture.initialization import prior_rows
from tmixture.maximization import Rules, maximization
from tmixture.parameters import Parameters
from tmixture.reservoir import draw_sample
from tmixture.sampling import Sample
from tmixture.scales import Scale
from tmixture.statistics import SufficientStatistics
from tmixture.step_sizes import StepSize, rate_of

# A stream is initialised anew with every batch until it has brought this many rows per component.
WARMUP_ROWS = 10
WARMUP_ITERATIONS = 10
# A component of a stream that is left with less than this many rows in the stream's memory has died.
DEAD_ROWS = 1e-6


@dataclass(frozen=True)
class Stream:
    """What a stream remembers beside the parameters.

    Attributes:
        statistics: averages per unit of sample weight, about a reference that stays.
        total_weight: sum of all sample weights seen, scalar.
        regularization: (d,), see `Rules`; fixed with the initialisation.
        variance: (d,), variances within components at the initialisation, towards which the scales of components of
            very few rows shrink.
    """

    statistics: SufficientStatistics
    total_weight: Tensor
    regularization: Tensor
    variance: Tensor

    def reorder(self, scale: Scale, order: Tensor) -> Stream:
        """The same with the components in another order (K,)."""
        return replace(self, statistics=self.statistics.reorder(scale, order))

    @classmethod
    def of_step(cls, step: em.Step, regularization: Tensor, dtype: torch.dtype, weight_unit: float = 1.0) -> Stream:
        """A stream that begins where a fit has ended, with the means that its sums give as the reference.

        Args:
            step: the last one of the fit.
            regularization: of its scales.
            dtype: that the parameters are kept in.
            weight_unit: of the statistics, see `Chunks`.
        """
        sums, scale = step.statistics, step.parameters.scale
        centre = sums.reference + sums.first / sums.mass.clamp(min=1e-30)[:, None]
        averages = sums.about(scale, centre).per_unit_weight()
        variance = step.parameters.to(dtype).variance_within().to(regularization)
        return cls(averages, sums.weight * weight_unit, regularization, variance)

    @classmethod
    def of_parameters(cls, parameters: Parameters, regularization: Tensor, variance: Tensor) -> Stream:
        """A stream whose parameters were given: as if they were the outcome of a warm-up."""
        rows = WARMUP_ROWS * parameters.n_components
        expected = SufficientStatistics.expected(parameters, rows)
        return cls(expected, parameters.weights.new_tensor(float(rows)), regularization, variance)


@dataclass(frozen=True)
class Update:
    """What a batch changes.

    Attributes:
        state: of the stream: its statistics, or all rows that wait for its beginning; None to leave it as it is.
        parameters: None to leave them as they are.
        n_reseeded: how many components were started anew.
    """

    state: Stream | Sample | None = None
    parameters: Parameters | None = None
    n_reseeded: int = 0


def shrinking(rules: Rules, scale: Scale, n_features: int, variance: Tensor) -> Rules:
    """The rules for components that have few rows as yet."""
    credit = prior_rows(scale, n_features)
    return replace(rules, prior_rows=credit, prior_variance=variance, own_rows=WARMUP_ROWS)


def waiting_with(
    waiting: Sample | None, batch: Chunks, dtype: torch.dtype, generator: torch.Generator | None, *, shared: bool
) -> Sample | None:
    """All rows that wait for the beginning of a stream, those of a batch in all processes included."""
    sample = draw_sample(batch, sys.maxsize, dtype, generator, shared=shared, allow_missing=batch.allow_missing)
    if sample.rows == 0:
        return None
    sample = sample.times(batch.weight_unit)
    return sample if waiting is None else waiting.followed_by(sample)


def warm_up(
    sample: Sample,
    weight_unit: float,
    start: Parameters,
    rules: Rules,
    dtype: torch.dtype,
    tol: float,
    generator: torch.Generator | None,
) -> Update:
    """A few iterations of EM on the first rows of a stream, which all processes hold, with weights in some unit."""
    steps = em.iterate(
        [Chunk(sample.x, sample.weight)],
        start,
        replace(rules, distributed=False),
        dtype=dtype,
        max_iter=WARMUP_ITERATIONS,
        tol=tol,
        generator=generator,
        max_reseeds=0,
    )
    *_, last = steps
    is_over = sample.rows >= WARMUP_ROWS * start.n_components
    begun = Stream.of_step(last, rules.regularization, dtype, weight_unit) if is_over else sample.times(weight_unit)
    return Update(begun, last.parameters)


def advance(
    stream: Stream,
    parameters: Parameters,
    batch: Chunks,
    rules: Rules,
    step_size: StepSize,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    *,
    restart: bool,
) -> Update:
    """Blend a batch into the statistics, and update the parameters from them.

    Args:
        stream: what is known.
        parameters: in the dtype of statistics.
        batch: chunks, to be passed over twice.
        rules: of the M-step; regularization and what few rows shrink to are those of the stream.
        step_size: as of `StudentTMixture`.
        dtype: of the arithmetic on chunks.
        generator: source of randomness.
        restart: whether components that have faded away are started anew.
    """
    parameters, scale = parameters.with_tails(), parameters.scale
    rules = replace(rules, regularization=stream.regularization)
    rules = shrinking(rules, scale, parameters.n_features, stream.variance)
    sums = em.expectation(batch, parameters, rules, dtype)
    if not sums.weight > 0:
        return Update()
    weight = sums.weight * batch.weight_unit
    total_weight = stream.total_weight + weight
    rate = rate_of(step_size, float(total_weight / weight))
    averages = sums.about(scale, stream.statistics.reference).per_unit_weight()
    blended = stream.statistics.blend(averages, rate)
    # The rows that the averages remember.
    blended.rows = sums.rows / rate
    parameters = maximization(blended, parameters, rules)
    blended = blended.standardized(scale, rules.frozen)
    dead: list[int] = []
    if restart:
        is_dead = blended.responsibility * blended.rows < DEAD_ROWS
        dead = (is_dead if rules.kept is None else is_dead & ~rules.kept.to(is_dead.device)).nonzero()[:, 0].tolist()
    if dead:
        candidates = reseeding.poorly_explained(
            batch, parameters, len(dead), dtype, generator, synchronize=rules.distributed
        )
        restarted, source = reseeding.reseed(parameters, dead, candidates)
        blended = blended.about(scale, parameters.means).take(scale, source, restarted.means)
        parameters = restarted
    return Update(replace(stream, statistics=blended, total_weight=total_weight), parameters, len(dead))
