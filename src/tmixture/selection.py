"""Choosing the number of components by an information criterion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tmixture import validation
from tmixture.chunks import Data
from tmixture.mixture import StudentTMixture

Criterion = Literal["bic", "aic", "icl"]


@dataclass(frozen=True)
class Candidate:
    """One fitted number of components, with its criteria; smaller is better.

    Attributes:
        n_components: K.
        log_likelihood: the mean per unit of sample weight.
        n_free_parameters: p of the criteria.
        bic: the Bayesian information criterion.
        aic: Akaike's.
        icl: the integrated completed likelihood.
        n_iter: number of M-steps.
        converged: whether the fit converged.
    """

    n_components: int
    log_likelihood: float
    n_free_parameters: int
    bic: float
    aic: float
    icl: float
    n_iter: int
    converged: bool


@dataclass(frozen=True)
class Selection:
    """The outcome of `select_components`.

    Attributes:
        best: the fitted mixture with the smallest criterion.
        criterion: the name of the criterion.
        candidates: one entry per number of components, in the order tried. `pandas.DataFrame(candidates)` works.
    """

    best: StudentTMixture
    criterion: Criterion
    candidates: list[Candidate]

    def __repr__(self) -> str:
        head = f"{'K':>6} {'log-likelihood':>15} {'parameters':>10} {'BIC':>14} {'AIC':>14} {'ICL':>14} {'EM steps':>9}"
        lines = [head]
        for c in self.candidates:
            mark = " <- " + self.criterion if c.n_components == self.best.n_components else ""
            steps = f"{c.n_iter}{'' if c.converged else '+'}"
            lines.append(
                f"{c.n_components:6d} {c.log_likelihood:15.5f} {c.n_free_parameters:10d} "
                f"{c.bic:14.1f} {c.aic:14.1f} {c.icl:14.1f} {steps:>9}{mark}"
            )
        return "\n".join(lines)


def select_components(
    data: Data,
    n_components: Iterable[int],
    n_features: int,
    *,
    criterion: Criterion = "bic",
    **settings: Any,
) -> Selection:
    """Fit a mixture for each number of components, and choose by a criterion.

    Args:
        data: whatever `StudentTMixture.fit` takes.
        n_components: the numbers to try, such as `range(1, 11)`.
        n_features: d.
        criterion: "bic", "aic" or "icl".
        **settings: further arguments of `StudentTMixture`.

    Examples:
        >>> selection = select_components(torch.randn(300, 2), range(1, 4), 2, covariance_type="full", generator=0)
        >>> selection.best.n_components
        1
    """
    criterion = validation.one_of(criterion, ("bic", "aic", "icl"), "criterion")
    numbers = list(dict.fromkeys(n_components))
    if not numbers:
        raise ValueError("n_components is empty: at least one number of components is needed")
    best: StudentTMixture | None = None
    candidates: list[Candidate] = []
    smallest = float("inf")
    for K in numbers:
        mixture = StudentTMixture(K, n_features, **settings).fit(data)
        candidate = _evaluate(mixture, data)
        candidates.append(candidate)
        if best is None or getattr(candidate, criterion) < smallest:
            best, smallest = mixture, getattr(candidate, criterion)
    assert best is not None
    return Selection(best, criterion, candidates)


def _evaluate(mixture: StudentTMixture, data: Data) -> Candidate:
    criteria = mixture.information_criteria(data)
    return Candidate(
        n_components=mixture.n_components,
        log_likelihood=criteria["log_likelihood"],
        n_free_parameters=mixture.n_free_parameters,
        bic=criteria["bic"],
        aic=criteria["aic"],
        icl=criteria["icl"],
        n_iter=mixture.n_iter_,
        converged=mixture.converged_,
    )
