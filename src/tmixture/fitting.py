"""One run of EM, from its start to its end, with a record of the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from tmixture.candidates import TruncatedExpectation
from tmixture.data.chunks import Chunks
from tmixture.em import Step, iterate, on_host
from tmixture.maximization import Rules
from tmixture.numerics import accumulation_dtype
from tmixture.parameters import Parameters
from tmixture.progress import progress_bar
from tmixture.reseeding import degenerate_components

# Regularization, relative to the variance of each feature.
RELATIVE_REGULARIZATION = 1e-6
# Below so many elements, those of the rows and of their responsibilities, arithmetic costs less than calling it, and
# float64 spares the calls that float32 needs to be accurate.
SMALL = 2**16
# With reg_covar=0, what keeps a component of identical points finite.
RELATIVE_FLOOR = 1e-12
# Precisions must not overflow in float32.
LEAST_REGULARIZATION = 1e-36


def positive(variance: Tensor) -> Tensor:
    """Variances (d,) of data, with what is usual among them in the place of those of constant features."""
    usual = variance.mean() if (variance > 0).any() else torch.ones_like(variance)
    return torch.where(variance > 0, variance, usual)


def regularization(reg_covar: float | Literal["auto"], variance: Tensor) -> Tensor:
    """The variances (d,) that components are credited with, from those of the data (d,)."""
    if reg_covar == "auto":
        return (RELATIVE_REGULARIZATION * variance).clamp(min=LEAST_REGULARIZATION)
    return (RELATIVE_FLOOR * variance).clamp(min=max(reg_covar, LEAST_REGULARIZATION))


def working_dtype(dtype: torch.dtype, chunks: Chunks, n_components: int) -> torch.dtype:
    """That of the arithmetic on the chunks of data whose rows have been counted, for parameters of some dtype."""
    width = chunks.n_features + n_components
    return dtype_for(dtype, chunks.rows, width, chunks.device, allow_missing=chunks.allow_missing)


def dtype_for(
    dtype: torch.dtype, rows: int | None, width: int, device: torch.device, *, allow_missing: bool
) -> torch.dtype:
    """The same for so many rows, of which each takes so many numbers; None if nobody has counted them."""
    is_small = rows is not None and rows * width <= SMALL
    return accumulation_dtype(device) if is_small or allow_missing else dtype


@dataclass
class Fit:
    """The record of one run of EM: its last step, and the objective on the way.

    Attributes:
        last: the last step.
        history: the objective at every step.
        reseeded: the components that were started anew, each as often as it was.
        degenerate: see `reseeding.degenerate_components`.
        disagreement: see `StudentTMixture`.
    """

    last: Step | None = None
    history: list[float] = field(default_factory=list)
    reseeded: list[int] = field(default_factory=list)
    degenerate: dict[int, list[int]] = field(default_factory=dict)
    disagreement: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether there is a step."""
        return self.last is not None

    @property
    def merit(self) -> tuple[int, float]:
        """What the best of several runs has most of: sound components first, and then the objective."""
        return -len(self.degenerate), self.history[-1]

    @property
    def step(self) -> Step:
        """The last step of a run that has begun."""
        assert self.last is not None
        return self.last

    def record(self, step: Step) -> None:
        """Go on to the next step."""
        self.last = step
        self.history.append(step.objective)
        self.reseeded.extend(step.reseeded)


def best(fits: list[Fit]) -> Fit:
    """The best of those that have begun."""
    return max((fit for fit in fits if fit.has_begun), key=lambda fit: fit.merit)


def run(
    fit: Fit,
    chunks: Chunks,
    start: Parameters,
    rules: Rules,
    *,
    dtype: torch.dtype,
    max_iter: int,
    tol: float,
    max_candidates: int | None,
    generator: torch.Generator | None,
    verbose: bool,
) -> None:
    """Iterate EM, recording every step in `fit`, which holds what was reached if it is interrupted."""
    e_step = None if max_candidates is None else TruncatedExpectation(chunks, rules, dtype, max_candidates)
    with progress_bar(total=max_iter, disable=not verbose, desc="EM", unit="it") as progress:
        for step in iterate(
            chunks, start, rules, dtype=dtype, max_iter=max_iter, tol=tol, generator=generator, e_step=e_step
        ):
            fit.record(step)
            progress.set_postfix_str(f"log-likelihood {step.objective:.6g}", refresh=False)
            progress.update(step.n_iter - progress.n)
    _, total_rows, rows = on_host(fit.step.statistics)
    fit.degenerate = degenerate_components(rows, total_rows, fit.step.parameters, rules.regularization)
    if e_step is not None:
        fit.disagreement = e_step.disagreement(fit.step.parameters, generator)
