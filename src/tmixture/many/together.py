"""Many small mixtures, each of a data set of its own, fitted together.

A small fit spends its time on calls, not on arithmetic. Here every call is made for all data sets at once: they are
worked on as one mixture of B·K components, of which each row sees the K of its own data set.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from tmixture import diagnostics, fitting, sampling
from tmixture.data.arrays import as_tensor, check_finite
from tmixture.em import what_is_left
from tmixture.many.problem import Problem
from tmixture.many.start import MOST_COMPONENTS, MOST_ROWS, starts
from tmixture.mixture import StudentTMixture
from tmixture.notices import each_once
from tmixture.numerics import exact
from tmixture.parameters import Parameters
from tmixture.scales.expanded import ExpandedScale
from tmixture.scales.full import FullScale

# Elements of the temporaries of so many data sets as are worked on at once.
BLOCK_ELEMENTS = 2**21


def fit_many(mixture: StudentTMixture, data: Tensor | np.ndarray) -> ManyMixtures:
    """Fit a mixture to each of many data sets: a mixture for each class, image or bootstrap sample.

    The result is that of `copy.deepcopy(mixture).fit(x)` for each x, but for rounding, in a small part of the time:
    small fits with structure "diag", "spherical" or "full", a given ν, and one start are made together. Others are made
    one after the other. All have the same random numbers, those of the mixture's seed.

    Args:
        mixture: what to fit, with all its settings; it stays as it is.
        data: (B, n, d), B data sets of n rows each.

    Returns:
        A sequence of B mixtures.

    Raises:
        ValueError: the data has the wrong shape, values that are not finite, or fewer rows than components.

    Examples:
        >>> mixtures = fit_many(StudentTMixture(4, 8, generator=0), torch.randn(100, 200, 8))
        >>> mixtures[3].means.shape
        torch.Size([4, 8])
        >>> mixtures.weights.shape
        torch.Size([100, 4])
    """
    data = as_tensor(data, "data").detach()
    if data.dim() != 3 or data.shape[2] != mixture.n_features or 0 in data.shape:
        raise ValueError(f"data must have shape (B, n, {mixture.n_features}), B, n ≥ 1, got {tuple(data.shape)}")
    if data.shape[1] < mixture.n_components:
        raise ValueError(
            f"data has {data.shape[1]} rows in each data set, but n_components={mixture.n_components} needs at least "
            "as many"
        )
    check_finite(data.flatten(0, 1), 0, "data")
    template = copy.deepcopy(mixture)
    if not isinstance(mixture.generator, int):
        template.generator = int(torch.randint(2**31 - 1, (), generator=mixture.generator))
    fits: list[Outcome | None] = [None] * len(data)
    with each_once(), mixture.exact_arithmetic():
        if _can_be_together(template, data):
            block = max(1, BLOCK_ELEMENTS // (data.shape[1] * _width(template)))
            fits = [fit for part in data.to(mixture.means.device).split(block) for fit in _fit_together(template, part)]
        for fit in fits:
            if fit is not None:
                diagnostics.warn_of(fit.parameters, fit.converged, mixture.means.dtype, mixture.tol, mixture.max_iter)
        outcomes = [Outcome.of(copy.deepcopy(template).fit(x)) if fit is None else fit for x, fit in zip(data, fits)]
    return ManyMixtures(template, outcomes)


@dataclass(frozen=True)
class Outcome:
    """What came of one fit.

    Attributes:
        parameters: of the mixture.
        history: the objective at every step.
        converged: whether it settled.
    """

    parameters: Parameters
    history: list[float]
    converged: bool

    @classmethod
    def of(cls, mixture: StudentTMixture) -> Outcome:
        """That of a mixture which has been fitted."""
        return cls(mixture.snapshot(), mixture.history_, mixture.converged_)


class ManyMixtures(Sequence[StudentTMixture]):
    """The mixtures that `fit_many` has fitted: `mixtures[b]` is a `StudentTMixture`, made when it is asked for.

    Attributes:
        weights: (B, K).
        means: (B, K, d).
        dof: (B, K).
        n_iter_: of each fit, list of B.
        converged_: likewise.
        log_likelihood_: (B,), the mean log-likelihood at the end of each fit, less the penalty: `history_[-1]`.
    """

    weights: Tensor
    means: Tensor
    dof: Tensor
    n_iter_: list[int]
    converged_: list[bool]
    log_likelihood_: Tensor

    def __init__(self, template: StudentTMixture, outcomes: list[Outcome]) -> None:
        self._template, self._outcomes = template, outcomes
        dtype, each = template.means.dtype, [outcome.parameters for outcome in outcomes]
        self.weights = torch.stack([parameters.weights for parameters in each]).to(dtype)
        self.means = torch.stack([parameters.means for parameters in each]).to(dtype)
        self.dof = torch.stack([parameters.dof for parameters in each]).to(dtype)
        self.n_iter_ = [len(outcome.history) - 1 for outcome in outcomes]
        self.converged_ = [outcome.converged for outcome in outcomes]
        self.log_likelihood_ = torch.tensor([outcome.history[-1] for outcome in outcomes], dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._outcomes)

    @overload
    def __getitem__(self, index: int) -> StudentTMixture: ...

    @overload
    def __getitem__(self, index: slice) -> ManyMixtures: ...

    def __getitem__(self, index: int | slice) -> StudentTMixture | ManyMixtures:
        if isinstance(index, slice):
            return ManyMixtures(self._template, self._outcomes[index])
        outcome = self._outcomes[index]
        mixture = copy.deepcopy(self._template)
        mixture.adopt(outcome.parameters)
        mixture.history_, mixture.converged_ = list(outcome.history), outcome.converged
        mixture.n_iter_ = len(outcome.history) - 1
        return mixture

    def __repr__(self) -> str:
        return f"ManyMixtures({len(self)} × {self._template})"


def _width(mixture: StudentTMixture) -> int:
    """Elements of the temporaries of a row."""
    K, d = mixture.n_components, mixture.n_features
    return K * d if mixture.covariance_type == "full" else 2 * d + 6 * K


def _can_be_together(mixture: StudentTMixture, data: Tensor) -> bool:
    """Whether these fits are small, and have nothing about them that `_fit_together` does not know."""
    n, K = data.shape[1], mixture.n_components
    small = n * (mixture.n_features + K) <= fitting.SMALL and n <= MOST_ROWS and K <= MOST_COMPONENTS
    known_start = isinstance(mixture.init, Tensor) or (mixture.init in ("kmeans", "kmeans++") and mixture.n_init == 1)
    special = (
        mixture.learn_dof
        or mixture.prior
        or mixture.frozen
        or mixture.background
        or mixture.allow_missing
        or mixture.anchor_rows
        or mixture.max_candidates
        or mixture.distributed
        or (mixture.warm_start and mixture.is_fitted)
    )
    structure = mixture.structure
    return small and known_start and not special and (issubclass(structure, ExpandedScale) or structure is FullScale)


def _fit_together(mixture: StudentTMixture, data: Tensor) -> list[Outcome | None]:
    """The fits to data sets (B, n, d) on the mixture's device; None where one must be made alone."""
    wide = data.to(torch.promote_types(data.dtype, mixture.means.dtype))
    start = starts(wide, mixture.n_components, mixture.init, sampling.as_generator(mixture.generator))
    x = exact(data)
    shift = x.mean(1, keepdim=True)
    problem = Problem.of(mixture, x - shift, start.variance)
    centres = exact(mixture.init) - shift if isinstance(mixture.init, Tensor) else None
    parameters = problem.started(mixture, start.labels, start.variance, centres)
    fits: list[Outcome | None] = [None] * len(data)
    histories: list[list[float]] = [[] for _ in fits]
    active, ordinary = torch.arange(len(data), device=x.device), start.ordinary
    for n_iter in range(mixture.max_iter + 1):
        active = active[ordinary]
        if len(active) == 0:
            break
        parameters, problem = _take(parameters, ordinary, mixture.n_components), problem.take(ordinary)
        statistics, objective = problem.expectation(parameters)
        converged = []
        for index, value in zip(active.tolist(), objective.tolist()):
            histories[index].append(value)
            converged.append(what_is_left(histories[index]) <= mixture.tol)
        ends = [end or n_iter == mixture.max_iter for end in converged]
        degenerate = problem.are_degenerate(statistics, parameters) if any(ends) else ends
        for place, index in enumerate(active.tolist()):
            if ends[place] and not degenerate[place]:
                own, _ = problem.own(place, parameters)
                own = replace(own, means=own.means + shift[index])
                fits[index] = Outcome(own, histories[index], converged[place])
        parameters = problem.maximization(statistics, parameters)
        ordinary = ~torch.tensor(ends, device=x.device) & ~problem.is_failing(statistics, parameters)
    return fits


def _take(parameters: Parameters, chosen: Tensor, n_components: int) -> Parameters:
    """Those of some of the data sets, by a mask (B,)."""
    if bool(chosen.all()):
        return parameters
    return parameters.take(chosen.repeat_interleave(n_components).nonzero()[:, 0])
