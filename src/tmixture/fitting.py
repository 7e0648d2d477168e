"""One run of EM, from its start to its end, with a record of the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from tmixture.candidates import TruncatedExpectation
from tmixture.chunks import Chunks
from tmixture.em import Rules, Step, iterate
from tmixture.parameters import Parameters


@dataclass
class Fit:
    """The record of one run of EM: its last step, and the log-likelihood on the way."""

    last: Step | None = None
    history: list[float] = field(default_factory=list)
    reseeded: list[int] = field(default_factory=list)
    disagreement: float | None = None

    @property
    def step(self) -> Step:
        """The last step of a run that has begun."""
        assert self.last is not None
        return self.last

    def record(self, step: Step) -> None:
        """Go on to the next step."""
        self.last = step
        self.history.append(step.log_likelihood)
        self.reseeded.extend(step.reseeded)


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
    with tqdm(total=max_iter, disable=not verbose, desc="EM", unit="it") as progress:
        for step in iterate(
            chunks, start, rules, dtype=dtype, max_iter=max_iter, tol=tol, generator=generator, e_step=e_step
        ):
            fit.record(step)
            progress.update(step.n_iter - progress.n)
            progress.set_postfix_str(f"log-likelihood {step.log_likelihood:.6g}")
    if e_step is not None:
        fit.disagreement = e_step.disagreement(fit.step.parameters, generator)
