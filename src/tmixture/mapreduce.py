"""Fits whose passes over the data another engine makes: Ray, Dask, Spark, or a loop.

What a part of the data says is summed up in a few numbers, which add up: `Reservoir` for the start, `Summary` for every
iteration. Both travel as bytes of safetensors, in which there is nothing to execute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmixture import diagnostics, fitting, reservoir, sampling
from tmixture.data.chunks import Chunks, Data, fitting_chunk_size
from tmixture.em import Step, expectation, on_host, what_is_left
from tmixture.files import packed, unpacked
from tmixture.initialization import cleaned, require_rows
from tmixture.maximization import Rules, maximization, penalty
from tmixture.mixture import StudentTMixture
from tmixture.parameters import Parameters
from tmixture.reseeding import degenerate_components
from tmixture.statistics import SufficientStatistics


@dataclass(frozen=True)
class Summary:
    """What a part of the data says about the parameters of a mixture; `a + b` says it of both parts.

    Attributes:
        statistics: of the part.
        under: a digest of the parameters that they were taken under.
    """

    statistics: SufficientStatistics
    under: str

    def __add__(self, other: Summary) -> Summary:
        """That of the rows of both.

        Raises:
            ValueError: they were taken under different parameters.
        """
        if not isinstance(other, Summary):
            return NotImplemented
        if other.under != self.under:
            raise ValueError("summaries that are added must be of the same parameters: one of them is of an older task")
        return Summary(self.statistics + other.statistics, self.under)

    def __radd__(self, other: Any) -> Summary:
        """For `sum`, which begins with 0."""
        return self if other == 0 else NotImplemented

    def __reduce__(self) -> tuple[Callable[[bytes], Summary], tuple[bytes]]:
        """Pickled as bytes of safetensors."""
        return Summary.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """A safetensors file; a few times K·d numbers in float64, and K·d² for "full"."""
        return packed("Summary", self.statistics.tensors(), under=self.under)

    @classmethod
    def from_bytes(cls, content: bytes) -> Summary:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or of another version.
        """
        tensors, header = unpacked("Summary", content)
        return cls(SufficientStatistics(**tensors), header["under"])


@dataclass(frozen=True)
class Draw:
    """A task: the reservoir of a part of the data, from which a fit starts.

    Attributes:
        n_features: d.
        size: most rows that are kept.
        dtype: of the rows.
        allow_missing: whether NaN may stand for a value.
        seed: of the random numbers.
    """

    n_features: int
    size: int
    dtype: torch.dtype
    allow_missing: bool
    seed: int

    def __call__(
        self, data: Data, sample_weight: Tensor | np.ndarray | None = None, *, part: int = 0
    ) -> reservoir.Reservoir:
        """The reservoir of a part.

        Args:
            data: whatever `fit` takes.
            sample_weight: as for `fit`.
            part: its number: where its rows come in the order of all, and which random numbers it gets.
        """
        cpu = torch.device("cpu")
        chunks = _chunks(data, self.n_features, cpu, 4096, sample_weight, allow_missing=self.allow_missing)
        first, missing = part * reservoir.FAR_APART, self.allow_missing
        drawn = reservoir.draw_reservoir(
            chunks, self.size, self.dtype, self.seed, first=first, part=part, allow_missing=missing
        )
        return replace(drawn, weight=drawn.weight.double() * chunks.weight_unit, key=drawn.key / chunks.weight_unit)


@dataclass(frozen=True)
class Summarize:
    """A task: the E-step on a part of the data, for one iteration.

    Attributes:
        parameters: of the mixture.
        rules: of the fit.
        dtype: of the arithmetic.
        width: numbers that a row takes beside its features.
        chunk_size: rows worked on at a time; None for what suits the device.
        under: the digest of the parameters.
    """

    parameters: Parameters
    rules: Rules
    dtype: torch.dtype
    width: int
    chunk_size: int | None
    under: str

    def __call__(
        self, data: Data, sample_weight: Tensor | np.ndarray | None = None, *, device: torch.device | str = "cpu"
    ) -> Summary:
        """The summary of a part: whatever `fit` takes, on a device of the worker's. A part may be empty."""
        device, parameters = torch.device(device), self.parameters
        d, matrices = parameters.n_features, parameters.scale.covariance_type == "full"
        size = self.chunk_size or fitting_chunk_size(self.width, d, device, matrices=matrices)
        chunks = _chunks(data, d, device, size, sample_weight, allow_missing=self.rules.allow_missing)
        with torch.no_grad():
            statistics = expectation(chunks, parameters.to(device), self.rules, self.dtype)
        statistics = statistics.times(chunks.weight_unit)
        on_cpu = {name: tensor.cpu() for name, tensor in statistics.tensors().items()}
        return Summary(SufficientStatistics(**on_cpu), self.under)


class MapReduceFit:
    """A fit to data that another engine passes over: tasks go out, and their sums come in.

    With one part or many, in whatever order they arrive, the result is that of `mixture.fit` but for rounding, as far
    as these are its rows: labels, `n_init`, `max_candidates` and new starts for components that die are not for it, and
    a learned ν takes more iterations, as it never leaps ahead.

    A task that was lost may run again: what counts is that each part is added once.

    Args:
        mixture: fitted in place; it holds what was reached after every `update`. With `warm_start=True` a fitted one
            goes on from its parameters.

    Attributes:
        is_over: whether it has converged, or made `mixture.max_iter` steps.

    Examples:
        >>> from functools import reduce
        >>> from operator import add
        >>> parts = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).split(300)
        >>> fit = MapReduceFit(StudentTMixture(3, 2, generator=0))
        >>> fit.begin(reduce(add, [fit.draw(part, part=i) for i, part in enumerate(parts)]))
        >>> while not fit.is_over:
        ...     fit.update(reduce(add, map(fit.summarize, parts)))
        >>> fit.mixture.predict(parts[0]).shape
        torch.Size([300])
    """

    mixture: StudentTMixture
    is_over: bool

    def __init__(self, mixture: StudentTMixture) -> None:
        if mixture.distributed:
            raise ValueError("mixture must have distributed=False: the engine is what brings parts together")
        if mixture.max_candidates is not None:
            raise ValueError("mixture must have max_candidates=None: candidates are remembered row by row")
        self.mixture = mixture
        self.is_over = False
        self._generator = sampling.as_generator(mixture.generator)
        self._seed = int(torch.randint(2**31 - 1, (), generator=self._generator))
        self._parameters: Parameters | None = None
        self._rules: Rules | None = None
        self._dtype = mixture.means.dtype
        self._fit = fitting.Fit()

    @property
    def draw(self) -> Draw:
        """The task before the first iteration: a reservoir of a part. Small, to be sent anywhere."""
        mixture = self.mixture
        size = sampling.sample_size(mixture.n_components, mixture.n_features)
        return Draw(mixture.n_features, size, mixture.means.dtype, mixture.allow_missing, self._seed)

    def begin(self, drawn: reservoir.Reservoir) -> None:
        """Find the start from the reservoir of all rows.

        Raises:
            ValueError: there are fewer rows than components.
        """
        if not isinstance(drawn, reservoir.Reservoir):
            raise ValueError(f"drawn must be a sum of what `draw` returns, got {type(drawn).__name__}")
        mixture = self.mixture
        require_rows(drawn.rows, mixture.n_components)
        sample = drawn.sample()
        sample = replace(sample, x=sample.x.to(mixture.means.device), weight=sample.weight.to(mixture.means.device))
        with mixture.exact_arithmetic():
            cleansed = cleaned(sample, mixture.n_components)
            self._parameters, self._rules = mixture.begin(cleansed, self._generator)
        self._dtype = fitting.dtype_for(
            mixture.means.dtype,
            drawn.rows,
            mixture.n_features + mixture.n_components,
            mixture.means.device,
            allow_missing=mixture.allow_missing,
        )
        self._fit, self.is_over = fitting.Fit(), False

    @property
    def summarize(self) -> Summarize:
        """The task of the present iteration: the E-step on a part. Small, to be sent anywhere.

        Raises:
            RuntimeError: the fit has not begun.
        """
        (parameters, rules), mixture, cpu = self._begun(), self.mixture, torch.device("cpu")
        width, under = mixture.n_components * (mixture.rank or 1), parameters.digest
        return Summarize(parameters.to(cpu), _on(rules, cpu), self._dtype, width, mixture.chunk_size, under)

    def update(self, summary: Summary) -> None:
        """Take the step that the sum of all parts gives, or none where `is_over` says so then.

        Raises:
            RuntimeError: the fit has not begun, or is over.
            ValueError: the summary is of other parameters than the present ones, or of no rows.
        """
        (parameters, rules), mixture, fit = self._begun(), self.mixture, self._fit
        if self.is_over:
            raise RuntimeError("this fit is over: begin another one")
        if not isinstance(summary, Summary):
            raise ValueError(f"summary must be a sum of what `summarize` returns, got {type(summary).__name__}")
        if summary.under != parameters.digest:
            raise ValueError("summary must be of the present parameters, but it is of an older task")
        device = mixture.means.device
        statistics = SufficientStatistics(**{k: v.to(device) for k, v in summary.statistics.tensors().items()})
        if not statistics.weight > 0:
            raise ValueError("summary must be of at least one row with positive weight")
        with mixture.exact_arithmetic():
            objective, total_rows, rows = on_host(statistics, penalty(parameters, rules, statistics.rows))
            converged = what_is_left([*fit.history, objective]) <= mixture.tol
            n_iter = len(fit.history)
            fit.record(Step(parameters, statistics, objective, n_iter, converged, []))
            self.is_over = converged or n_iter == mixture.max_iter
            mixture.conclude(fit, rules)
            if not self.is_over:
                self._parameters = maximization(statistics, parameters, rules)
                return
            fit.degenerate = degenerate_components(rows, total_rows, parameters, rules.regularization)
            diagnostics.warn_about(fit, rules, mixture.means.dtype, tol=mixture.tol, max_iter=mixture.max_iter)

    def _begun(self) -> tuple[Parameters, Rules]:
        if self._parameters is None or self._rules is None:
            raise RuntimeError("this fit has not begun: give `begin` the sum of what `draw` says of each part")
        return self._parameters.with_tails(), self._rules


def _chunks(
    data: Data,
    n_features: int,
    device: torch.device,
    size: int,
    sample_weight: Tensor | np.ndarray | None,
    *,
    allow_missing: bool,
) -> Chunks:
    return Chunks(
        data,
        n_features,
        device,
        size,
        sample_weight=sample_weight,
        allow_missing=allow_missing,
        may_be_empty=True,
    )


def _on(rules: Rules, device: torch.device) -> Rules:
    """The rules with what the E-step needs of them on a device."""
    variance = rules.variance.to(device) if isinstance(rules.variance, Tensor) else rules.variance
    return Rules(
        rules.scale_update,
        rules.learn_dof,
        rules.dof_bounds,
        rules.regularization.to(device),
        variance,
        allow_missing=rules.allow_missing,
    )
