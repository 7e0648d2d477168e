"""Choosing the number of components, and the structure of their scales, by an information criterion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor
from typing_extensions import Unpack

from tmixture import notices, validation
from tmixture.criteria import information_criteria
from tmixture.data.chunks import Data
from tmixture.distributed import rank
from tmixture.initialization import TooFewRowsError
from tmixture.mixture import StudentTMixture
from tmixture.progress import progress_bar
from tmixture.reservoir import draw_sample
from tmixture.sampling import as_generator
from tmixture.scales import STRUCTURES
from tmixture.settings import CovarianceType, FitSettings

Criterion = Literal["bic", "aic", "icl"]


@dataclass(frozen=True)
class Candidate:
    """One fitted mixture, with its criteria; smaller is better.

    Attributes:
        n_components: K.
        covariance_type: the structure.
        log_likelihood: the mean per unit of sample weight.
        n_free_parameters: p of the criteria.
        bic: the Bayesian information criterion.
        aic: Akaike's.
        icl: the integrated completed likelihood.
        n_iter: number of M-steps.
        converged: whether the fit converged.
        fitted_log_likelihood: the mean over the sample of rows that it was fitted to; as `log_likelihood` without one.
            Where it is larger by more than the candidates differ, the sample was too small for so many components.
        failure: why there is no fit; None if there is one. All numbers are NaN then.
    """

    n_components: int
    covariance_type: str
    log_likelihood: float
    n_free_parameters: int
    bic: float
    aic: float
    icl: float
    n_iter: int
    converged: bool
    fitted_log_likelihood: float
    failure: str | None = None


@dataclass(frozen=True)
class Selection:
    """The outcome of `select_components`.

    Attributes:
        best: the fitted mixture with the smallest criterion.
        criterion: the name of the criterion.
        candidates: one entry per number and structure, in the order tried. `pandas.DataFrame(candidates)` works.
    """

    best: StudentTMixture
    criterion: Criterion
    candidates: list[Candidate]

    @property
    def chosen(self) -> Candidate:
        """The entry of `best`."""
        return _smallest(self.candidates, self.criterion)

    def __repr__(self) -> str:
        head = (
            f"{'K':>6} {'scales':>9} {'log-likelihood':>15} {'parameters':>10} "
            f"{'BIC':>14} {'AIC':>14} {'ICL':>14} {'EM steps':>9}"
        )
        lines = [head]
        for c in self.candidates:
            mark = " <- " + self.criterion if c is self.chosen else ""
            steps = f"{c.n_iter}{'' if c.converged else '+'}"
            if c.failure:
                lines.append(f"{c.n_components:6d} {c.covariance_type:>9} no fit: {c.failure}")
                continue
            lines.append(
                f"{c.n_components:6d} {c.covariance_type:>9} {c.log_likelihood:15.5f} {c.n_free_parameters:10d} "
                f"{c.bic:14.1f} {c.aic:14.1f} {c.icl:14.1f} {steps:>9}{mark}"
            )
        return "\n".join(lines)


def select_components(
    data: Data,
    n_components: Iterable[int],
    n_features: int,
    sample_weight: Tensor | np.ndarray | None = None,
    *,
    criterion: Criterion = "bic",
    fit_rows: int | None = None,
    covariance_type: CovarianceType | Iterable[CovarianceType] = "diag",
    rank: int | None = None,
    **settings: Unpack[FitSettings],
) -> Selection:
    """Fit a mixture for each number of components, and choose by a criterion.

    All arguments are checked before the first fit, and the criteria of all candidates come from one pass over the data.
    Numbers of components for which there are too few rows have no fit,
    and there is a warning. With a seed as `generator` all structures start from the same centres.

    Args:
        data: whatever `StudentTMixture.fit` takes.
        n_components: the numbers to try, such as `range(1, 11)`.
        n_features: d.
        sample_weight: (N,), as for `StudentTMixture.fit`.
        criterion: "bic", "aic" or "icl".
        fit_rows: fit to a random sample of so many rows, drawn in proportion to their weights; the criteria are of all
            rows all the same, so that the rest is a check. For data that takes long to read: one pass draws the sample,
            another one judges. `best.warm_start = True; best.fit(data)` goes on with all rows.
        covariance_type: the structure, or several to try with each number, such as `["full", "diag"]`.
        rank: of those structures that take one.
        **settings: further arguments of `StudentTMixture`; `verbose=True` shows how many fits are left.

    Raises:
        ValueError: an argument is wrong, or there are too few rows for each of the numbers.

    Examples:
        >>> selection = select_components(torch.randn(300, 2), range(1, 4), 2, covariance_type="full", generator=0)
        >>> selection.best.n_components
        1
    """
    criterion = validation.one_of(criterion, ("bic", "aic", "icl"), "criterion")
    if isinstance(n_components, (int, np.integer)):
        raise ValueError(f"n_components must be the numbers to try, such as [{n_components}], got {n_components}")
    structures: list[CovarianceType]
    structures = [covariance_type] if isinstance(covariance_type, str) else list(dict.fromkeys(covariance_type))
    with_rank = [structure for structure in structures if structure in STRUCTURES and STRUCTURES[structure].takes_rank]

    def unfitted(K: int, structure: CovarianceType) -> StudentTMixture:
        own_rank = rank if structure in with_rank or not with_rank else None
        return StudentTMixture(K, n_features, covariance_type=structure, rank=own_rank, **settings)

    pairs = [(K, structure) for K in dict.fromkeys(n_components) for structure in structures]
    if not pairs:
        raise ValueError(f"{'n_components' if structures else 'covariance_type'} is empty: at least one is needed")
    for pair in pairs:
        unfitted(*pair)  # raises what is wrong with the arguments
    mixtures: list[StudentTMixture] = []
    too_few: dict[int, TooFewRowsError] = {}
    learned, weight = data, sample_weight
    if fit_rows is not None:
        learned, weight = _sample(unfitted(*pairs[0]), data, sample_weight, fit_rows)
    for K, structure in progress_bar(pairs, desc="mixtures", disable=not settings.get("verbose")):
        try:
            mixtures.append(unfitted(K, structure).fit(learned, weight))
        except TooFewRowsError as error:
            too_few[K] = error
    if not mixtures:
        raise next(iter(too_few.values()))
    if too_few:
        notices.warn(f"n_components={list(too_few)} have no fit: {list(too_few.values())[-1]}")
    fitted = {(m.n_components, m.covariance_type): m for m in mixtures}
    own = None if fit_rows is None else [mixture.score(learned, weight) for mixture in mixtures]
    rows = _evaluate(mixtures, data, sample_weight, own)
    candidates = [rows.get(pair) or _failed(*pair, str(too_few[pair[0]])) for pair in pairs]
    chosen = _smallest(candidates, criterion)
    return Selection(fitted[chosen.n_components, chosen.covariance_type], criterion, candidates)


def _sample(
    mixture: StudentTMixture, data: Data, sample_weight: Tensor | np.ndarray | None, rows: int
) -> tuple[Tensor, Tensor]:
    """A random sample of the data, and its weights, the same in all processes that share it."""
    rows = validation.positive_integer(rows, "fit_rows")
    chunks, generator = mixture.chunks(data, sample_weight), as_generator(mixture.generator)
    with mixture.together():
        drawn = draw_sample(
            chunks,
            rows,
            mixture.means.dtype,
            generator,
            shared=mixture.distributed,
            allow_missing=mixture.allow_missing,
        )
    is_mine = rank() == 0 or not mixture.distributed
    return (drawn.x, drawn.weight) if is_mine else (drawn.x[:0], drawn.weight[:0])


def _smallest(candidates: list[Candidate], criterion: Criterion) -> Candidate:
    fitted = [candidate for candidate in candidates if candidate.failure is None]
    return min(fitted, key=lambda candidate: getattr(candidate, criterion))


def _failed(n_components: int, structure: str, failure: str) -> Candidate:
    unknown = float("nan")
    return Candidate(n_components, structure, unknown, 0, unknown, unknown, unknown, 0, False, unknown, failure)


def _evaluate(
    mixtures: list[StudentTMixture],
    data: Data,
    sample_weight: Tensor | np.ndarray | None,
    own: list[float] | None,
) -> dict[tuple[int, str], Candidate]:
    """The candidates, by number and structure, judged in one pass; `own` are the scores on what they learned from."""
    first = mixtures[0]
    with first.together():
        parts = [(mixture.log_joint, mixture.n_free_parameters) for mixture in mixtures]
        # The widest of them says how many rows are worked on at a time.
        widest = max(mixtures, key=lambda mixture: mixture.n_components * (mixture.rank or 1))
        found = information_criteria(parts, widest.chunks(data, sample_weight), shared=first.distributed)
    return {
        (mixture.n_components, mixture.covariance_type): Candidate(
            n_components=mixture.n_components,
            covariance_type=mixture.covariance_type,
            log_likelihood=criteria["log_likelihood"],
            n_free_parameters=mixture.n_free_parameters,
            bic=criteria["bic"],
            aic=criteria["aic"],
            icl=criteria["icl"],
            n_iter=mixture.n_iter_,
            converged=mixture.converged_,
            fitted_log_likelihood=criteria["log_likelihood"] if own is None else own[i],
        )
        for i, (mixture, criteria) in enumerate(zip(mixtures, found))
    }
