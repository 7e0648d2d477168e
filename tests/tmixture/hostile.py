"""Data as nobody should bring it, and what a fit makes of it; each in a process of its own, which may die."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from tests.processes import FORKED

from tmixture import StudentTMixture

from .helpers import STRUCTURES, of

# What a refusal may be about.
NAMES = re.compile(r"\b(data|sample_weight|n_components)\b")


def gaussian(rng, n, d):
    return rng.normal(size=(n, d))


def clusters(rng, n, d):
    return 5 * rng.normal(size=(4, d))[rng.integers(0, 4, n)] + rng.normal(size=(n, d))


def constant(rng, n, d):
    return np.broadcast_to(rng.normal(size=d), (n, d)).copy()


def constant_features(rng, n, d):
    return np.where(rng.random(d) < 0.5, rng.normal(size=(n, d)), 3.0)


def duplicated(rng, n, d):
    return rng.normal(size=(3, d))[rng.integers(0, 3, n)]


def nearly_duplicated(rng, n, d):
    return duplicated(rng, n, d) + 1e-9 * rng.normal(size=(n, d))


def one_hot(rng, n, d):
    return np.eye(d)[rng.integers(0, d, n)]


def counts(rng, n, d):
    return rng.poisson(0.1, size=(n, d)).astype(float)


def compositional(rng, n, d):
    return rng.dirichlet(np.full(d, 0.3), n)


def collinear(rng, n, d):
    return rng.normal(size=(n, 1)) * rng.normal(size=(1, d)) + rng.normal(size=d)


def low_rank(rng, n, d):
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, d))


def mixed_units(rng, n, d):
    return clusters(rng, n, d) * 10.0 ** rng.uniform(-6, 6, d)


def heavy_tailed(rng, n, d):
    return rng.standard_cauchy(size=(n, d)) ** 3


def saturated(rng, n, d):
    return np.where(rng.random((n, 1)) < 0.02, 65504.0, clusters(rng, n, d))


def unit_length(rng, n, d):
    x = clusters(rng, n, d)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def one_stray(rng, n, d):
    x = rng.normal(size=(n, d))
    x[0] = 1e12
    return x


KINDS = {
    kind.__name__: kind
    for kind in (
        gaussian, clusters, constant, constant_features, duplicated, nearly_duplicated, one_hot, counts, compositional,
        collinear, low_rank, mixed_units, heavy_tailed, saturated, unit_length, one_stray,
    )
}  # fmt: skip
WEIGHTS = {
    "none": lambda rng, n: None,
    "equal": lambda rng, n: np.ones(n),
    "zero": lambda rng, n: np.zeros(n),
    "mostly zero": lambda rng, n: (rng.random(n) < 0.1).astype(float),
    "tiny": lambda rng, n: np.full(n, 1e-40),
    "huge": lambda rng, n: np.full(n, 1e38),
    "spread": lambda rng, n: 10.0 ** rng.uniform(-30, 30, n),
}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Case:
    """A data set and a mixture to fit to it, at once or in some batches, in words that a process can be told."""

    kind: str
    n: int
    d: int
    seed: int
    factor: float
    offset: float
    dtype: str
    weights: str
    structure: str
    K: int
    batches: int | None
    settings: tuple[tuple[str, Any], ...]

    def rows(self) -> torch.Tensor:
        """The data (n, d)."""
        x = KINDS[self.kind](np.random.default_rng(self.seed), self.n, self.d)
        return torch.as_tensor(x * self.factor + self.offset).to(DTYPES[self.dtype])

    def sample_weight(self) -> torch.Tensor | None:
        """Its weights (n,)."""
        weight = WEIGHTS[self.weights](np.random.default_rng(self.seed + 1), self.n)
        return None if weight is None else torch.as_tensor(weight)

    def mixture(self) -> StudentTMixture:
        """The mixture to fit."""
        settings = {**of(self.structure), **dict(self.settings)}
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        return StudentTMixture(self.K, self.d, **settings, generator=self.seed, dtype=dtype)


@st.composite
def cases(draw) -> Case:
    """Any of them."""
    structure = draw(st.sampled_from(STRUCTURES))
    learn_dof = draw(st.sampled_from([False, "shared", "component"]))
    settings = {
        "learn_dof": learn_dof,
        "dof": draw(st.sampled_from([1.0, 4.0, 50.0] if learn_dof else [0.5, 4.0, 1e6, math.inf])),
        "reg_covar": draw(st.sampled_from(["auto", "auto", 0.0, 1e-6])),
        "max_iter": draw(st.sampled_from([1, 20])),
        "n_init": draw(st.sampled_from([1, 1, 2])),
        "scale_update": draw(st.sampled_from(["px", "classic"])),
    }
    return Case(
        kind=draw(st.sampled_from(sorted(KINDS))),
        n=draw(st.integers(1, 300)),
        d=draw(st.integers(2 if structure == "lowrank" else 1, 33)),
        seed=draw(st.integers(0, 2**16)),
        factor=draw(st.sampled_from([1.0, 1.0, 1e-30, 1e-12, 1e6, 1e15])),
        offset=draw(st.sampled_from([0.0, 0.0, 1.0, 1e4, 1e9])),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        weights=draw(st.sampled_from(sorted(WEIGHTS))),
        structure=structure,
        K=draw(st.integers(1, 12)),
        batches=draw(st.sampled_from([None, None, 1, 3])),
        settings=tuple(settings.items()),
    )


def fault(case: Case) -> str | None:
    """What is wrong with the answer to a case, if anything: a clear refusal is right, too."""
    x, weight, mixture = case.rows(), case.sample_weight(), case.mixture()
    batches = torch.arange(len(x)).chunk(case.batches or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in batches:
            before = {name: value.clone() for name, value in mixture.state_dict().items()}
            learn = mixture.partial_fit if case.batches else mixture.fit
            try:
                learn(x[rows], None if weight is None else weight[rows])
            except ValueError as error:
                if not NAMES.search(str(error)):
                    return f"a refusal that names no argument: {error}"
                if any(not torch.equal(value, before[name]) for name, value in mixture.state_dict().items()):
                    return f"a refusal that left something changed: {error}"
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return fault_of_answer(mixture, x) if mixture.fitted else None


def fault_of_answer(mixture: StudentTMixture, x: torch.Tensor) -> str | None:
    """What is wrong with a fitted mixture, if anything."""
    parameters = mixture.snapshot().to(torch.float64)  # float32 may hold 1/σ but not σ²
    variances = parameters.scale.variances(mixture.n_features)
    if not all(value.isfinite().all() for value in (mixture.weights, mixture.means, variances)):
        return "parameters that are not finite"
    if not ((variances > 0).all() and (mixture.weights >= 0).all() and (mixture.dof > 0).all()):
        return "parameters that are not positive"
    if abs(float(mixture.weights.double().sum()) - 1) > 1e-4:
        return "weights that do not sum to one"
    responsibilities = mixture(x)
    if not responsibilities.isfinite().all() or (responsibilities.double().sum(1) - 1).abs().max() > 1e-3:
        return "responsibilities that are no probabilities"
    if not mixture.log_prob(x).isfinite().all() or not mixture.outlier_weights(x).isfinite().all():
        return "log densities or outlier weights that are not finite"
    history = np.asarray(mixture.history_)
    if not np.isfinite(history).all():
        return f"a history that is not finite: {history}"
    if len(history) == 0:  # of a stream
        return None
    falls = int(
        (np.diff(history) < -1e-5 * (np.abs(history).max() + mixture.n_features) - resolution(mixture, x)).sum()
    )
    return f"an objective that falls: {history}" if falls > mixture.n_reseeded_ else None


def resolution(mixture: StudentTMixture, x: torch.Tensor) -> float:
    """How well float64 can know the objective: a distance of m standard deviations is off by about m²·2⁻⁵²."""
    parameters = mixture.snapshot().to(torch.float64)
    precision = parameters.scale.precisions(mixture.n_features)
    eps = torch.finfo(torch.float64).eps
    size = x.double().abs().amax(0)
    offset = x.double().mean(0).abs().maximum(parameters.means.abs())
    expanded = eps * (precision * (size + offset).square()).sum(1).max()
    return 64 * float(expanded)


class Worker:
    """A process to ask, replaced when it dies."""

    def __init__(self) -> None:
        self.pool = self._new()

    def ask(self, function: Callable[..., str | None], *args: Any) -> str | None:
        """What the function says, or that it ended the process."""
        try:
            return self.pool.submit(function, *args).result()
        except BrokenProcessPool:
            self.pool = self._new()
            return "the end of the interpreter"

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()

    @staticmethod
    def _new() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, FORKED, initializer=torch.set_num_threads, initargs=(1,))
