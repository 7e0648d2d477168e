"""`DirectionalMixture`: a mixture of directions, for embeddings of which only the cosine counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from typing_extensions import Self

from tmixture import files, initialization, sampling, validation
from tmixture.accumulation import evidence
from tmixture.criteria import information_criteria
from tmixture.data.chunks import Chunks, Data, assembled, chunk_size, of_any_size
from tmixture.diagnostics import warn_of_no_convergence
from tmixture.em import what_is_left
from tmixture.notices import each_once
from tmixture.numerics import column_sums, cross_moments, exact
from tmixture.precision import exact_arithmetic, full_precision
from tmixture.settings import Init
from tmixture.sphere import FAMILIES
from tmixture.step_sizes import PowerDecay, StepSize, rate_of

# Uniform rows that each component is credited with at the start, lest a cluster of one row begins as a point.
START_ROWS = 2.0
# A component with no more than this share of the rows has died, and stays what it is.
DEAD = 1e-9
SETTINGS = (
    "n_components",
    "n_features",
    "family",
    "init",
    "n_init",
    "max_iter",
    "tol",
    "warm_start",
    "chunk_size",
    "step_size",
)


@dataclass(frozen=True)
class Directions:
    """Weights (K,), directions (K, d) and concentrations (K,) of a mixture, in the dtype of statistics."""

    weights: Tensor
    directions: Tensor
    concentration: Tensor


@dataclass(frozen=True)
class Sums:
    """What EM adds: Σ r (K,), Σ r·w (K,), Σ r·w·x (K, d), and the log-likelihood and the weight of the rows."""

    n: Tensor
    mass: Tensor
    resultant: Tensor
    log_likelihood: Tensor
    weight: Tensor

    @property
    def averages(self) -> Tensor:
        """The first three in one matrix (K, d + 2), per unit of weight."""
        return torch.cat([self.n[:, None], self.mass[:, None], self.resultant], dim=1) / self.weight

    @classmethod
    def of(cls, averages: Tensor) -> Sums:
        """From such a matrix, of unit weight."""
        n, mass, resultant = averages[:, 0], averages[:, 1], averages[:, 2:]
        return cls(n, mass, resultant, torch.zeros_like(n[0]), torch.ones_like(n[0]))


class DirectionalMixture(nn.Module):
    """A mixture of K distributions on the unit sphere, fitted by EM; rows are divided by their norms.

    Embeddings that are compared by cosines have no length: a von Mises–Fisher component is to them what a spherical
    Gaussian is to points (Banerjee et al. 2005), and a spherical Cauchy one has heavy tails (Kato & McCullagh 2020), so
    that a row that points elsewhere hardly moves it. Their density is one on the sphere, not comparable with that of
    `StudentTMixture`.

    Args:
        n_components: K.
        n_features: d, at least 2.
        family: "von_mises_fisher" or "cauchy".
        init: "kmeans", "kmeans++", "random", or directions (K, d) to start from.
        n_init: how many starts to try, unless the start is given; the fit with the highest likelihood is kept.
        max_iter: upper bound of the M-steps.
        tol: as of `StudentTMixture`.
        step_size: step sizes of `partial_fit`, as of `StudentTMixture`.
        warm_start: whether `fit` starts from the current parameters, if there are any.
        chunk_size: rows worked on at a time; chosen from K and d if None.
        generator: source of randomness, or a seed; None is torch's default generator.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weights: (K,) π, buffer.
        directions: (K, d) μ, unit vectors, buffer.
        concentration: (K,) κ from 0 to 1e8, or ρ in [0, 1), buffer: 0 is uniform.
        n_iter_: number of M-steps of the last fit.
        converged_: whether it converged.
        history_: the mean log-likelihood before each M-step and at the end.

    Examples:
        >>> mixture = DirectionalMixture(3, 8, generator=0).fit(torch.randn(500, 8))
        >>> mixture.predict(torch.randn(5, 8)).shape
        torch.Size([5])
    """

    n_components: int
    n_features: int
    family: str
    init: str | Tensor
    n_init: int
    max_iter: int
    tol: float
    step_size: StepSize
    chunk_size: int | None
    generator: torch.Generator | int | None
    converged_: bool
    n_iter_: int
    __call__: Callable[..., Tensor]
    weights: Tensor
    directions: Tensor
    concentration: Tensor
    fitted: Tensor
    running: Tensor
    seen: Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        *,
        family: Literal["von_mises_fisher", "cauchy"] = "von_mises_fisher",
        init: Init | Tensor | np.ndarray = "kmeans",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-4,
        step_size: StepSize = PowerDecay(),
        warm_start: bool = False,
        chunk_size: int | None = None,
        generator: torch.Generator | int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_components = validation.positive_integer(n_components, "n_components")
        self.n_features = validation.positive_integer(n_features, "n_features")
        if self.n_features < 2:
            raise ValueError(f"n_features must be at least 2 for directions, got {n_features}")
        self.family = validation.one_of(family, tuple(FAMILIES), "family")
        self.init = validation.init(init, tuple(initialization.CENTRES), self.n_components, self.n_features)
        self.n_init = validation.positive_integer(n_init, "n_init")
        self.max_iter = validation.whole_number(max_iter, "max_iter")
        self.tol = validation.not_negative(tol, "tol")
        self.step_size = validation.step_size(step_size)
        self.warm_start = warm_start
        self.chunk_size = None if chunk_size is None else validation.positive_integer(chunk_size, "chunk_size")
        self.generator = validation.generator(generator)
        dtype = validation.floating(dtype or torch.get_default_dtype())
        for name, shape in {"weights": (n_components,), "directions": (n_components, n_features)}.items():
            self.register_buffer(name, torch.zeros(shape, device=device, dtype=dtype))
        self.register_buffer("concentration", torch.zeros(n_components, device=device, dtype=dtype))
        self.register_buffer("fitted", torch.zeros((), device=device))
        # Of a stream: Σ r, Σ r·w and Σ r·w·x per unit of sample weight, and the weight of all rows seen.
        self.register_buffer("running", torch.zeros(n_components, n_features + 2, device=device, dtype=dtype))
        self.register_buffer("seen", torch.zeros((), device=device))
        self.n_iter_, self.converged_ = 0, False
        self.history_: list[float] = []

    # ---------------------------------------------------------------- learning

    def fit(
        self,
        data: Data,
        sample_weight: Tensor | np.ndarray | None = None,
        *,
        responsibilities: Tensor | np.ndarray | None = None,
    ) -> Self:
        """Fit by EM on all of the data, one chunk of it at a time.

        Args:
            data: whatever `StudentTMixture.fit` takes; rows of any length but zero.
            sample_weight: (N,) weights, not negative. An integer weight counts as that many repeated rows.
            responsibilities: labels (N,) or responsibilities (N, K) to start from instead of `init`.

        Returns:
            The module itself.

        Raises:
            ValueError: the data has the wrong shape, values that are not finite, a row of zeros, or fewer rows than
                components. Nothing has changed then.
        """
        generator = sampling.as_generator(self.generator)
        goes_on = self.warm_start and self.is_fitted
        with each_once(), exact_arithmetic(self.directions.device):
            chunks = self._chunks(data, sample_weight)
            given = None if responsibilities is None else self._chunks(data, sample_weight, responsibilities)
            sample = initialization.random_sample(
                chunks, self.n_components, self.directions.dtype, generator, shared=False
            )
            is_given = goes_on or given is not None or isinstance(self.init, Tensor)
            fits = []
            for _ in range(1 if is_given else self.n_init):
                fits.append(self._iterate(self._start(sample, given, generator, goes_on=goes_on), chunks))
            parameters, sums, self.history_, self.converged_ = max(fits, key=lambda fit: fit[2][-1])
            self.n_iter_ = len(self.history_) - 1
            self._adopt(parameters)
            self._remember(sums.averages, sums.weight * chunks.weight_unit)
            if not self.converged_:
                warn_of_no_convergence(self.tol, self.max_iter)
        return self

    def fit_predict(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> Tensor:
        """`fit`, then `predict`: labels (N,)."""
        return self.fit(data, sample_weight).predict(data)

    def partial_fit(self, batch: Tensor | np.ndarray, sample_weight: Tensor | np.ndarray | None = None) -> Self:
        """Learn from one batch of a stream: a step of stepwise EM (Cappé & Moulines 2009).

        The averages of the statistics become (1 − η)·averages + η·batch, and an M-step follows. The first batch,
        without an earlier `fit`, is fitted by itself; it should bring some rows for each component.

        Args:
            batch: (n, d), of K rows at least if it is the first.
            sample_weight: (n,), not negative. A batch whose weights are all zero changes nothing.

        Returns:
            The module itself.

        Raises:
            ValueError: the batch has the wrong shape, values that are not finite, or a row of zeros. Nothing has
                changed then.
        """
        if not self.is_fitted:
            return self.fit(batch, sample_weight)
        with each_once(), exact_arithmetic(self.directions.device):
            chunks = self._chunks(batch, sample_weight)
            sums = self._expectation(self._present(), chunks)
            weight = sums.weight * chunks.weight_unit
            if not weight > 0:
                return self
            seen = exact(self.seen) + weight
            rate = rate_of(self.step_size, float(seen / weight))
            averages = exact(self.running).lerp(sums.averages, rate)
            self._adopt(self._maximization(self._present(), Sums.of(averages)))
            self._remember(averages, seen)
        return self

    # ---------------------------------------------------------------- asking

    @of_any_size
    def forward(self, x: Tensor) -> Tensor:
        """Responsibilities r_ik: (n, d) → (n, K), differentiable."""
        return self.log_joint(x).softmax(1)

    def responsibilities(self, x: Data) -> Tensor:
        """The same as `forward`."""
        return self(x)

    @of_any_size
    def log_joint(self, x: Tensor) -> Tensor:
        """Log π_k + log f(x_i; μ_k, κ_k): (n, d) → (n, K), differentiable."""
        return self.weights.log() + self.component_log_prob(x)

    @of_any_size
    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log f(x_i; μ_k, κ_k), a density on the sphere: (n, d) → (n, K), differentiable."""
        self.require_fitted()
        x = validation.batch(x, self.n_features)
        with full_precision(self.directions.device):
            cosines = unit(x.to(self._result_dtype)) @ self.directions.to(self._result_dtype).T
            return self._log_prob(cosines, self._present())

    @of_any_size
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_i): (n, d) → (n,), differentiable."""
        return self.log_joint(x).logsumexp(1)

    @torch.no_grad()
    def predict(self, data: Data) -> Tensor:
        """The component with the largest responsibility for each row: labels (N,), int64."""
        return self.in_chunks(lambda rows: self.log_joint(rows).argmax(1), data)

    @torch.no_grad()
    def in_chunks(self, question: Callable[[Tensor], Any], data: Data) -> Any:
        """What a question answers about each row of data of any size; see `StudentTMixture.in_chunks`."""
        self.require_fitted()
        chunks = self._chunks(data, may_be_empty=True)
        return assembled((question(chunk.x) for chunk in chunks), chunks.n_rows)

    def score(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """The mean log-likelihood per unit of sample weight, on the sphere."""
        return self.information_criteria(data, sample_weight)["log_likelihood"]

    def bic(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """The Bayesian information criterion −2·log L + p·log N; smaller is better."""
        return self.information_criteria(data, sample_weight)["bic"]

    @torch.no_grad()
    def information_criteria(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> dict[str, float]:
        """Mean "log_likelihood", "bic", "aic" and "icl" from one pass over the data, as of `StudentTMixture`."""
        self.require_fitted()
        chunks = self._chunks(data, sample_weight)
        n_free = self.n_components * (self.n_features + 1) - 1  # d − 1 for a direction
        return information_criteria([(self.log_joint, n_free)], chunks, shared=False)[0]

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | int | None = None) -> tuple[Tensor, Tensor]:
        """Draw n unit rows (n, d) and the components (n,) that they come from; `generator` may be a seed."""
        self.require_fitted()
        generator = sampling.as_generator(validation.generator(generator))
        n = validation.positive_integer(n, "n")
        component = torch.multinomial(self.weights.cpu().float(), n, replacement=True, generator=generator)
        present = self._present()
        directions, concentration = (part.cpu()[component] for part in (present.directions, present.concentration))
        cosines = FAMILIES[self.family].sample_cosines(concentration, self.n_features, generator)
        noise = torch.randn(n, self.n_features, generator=generator, dtype=torch.float64)
        across = normalize(noise - (noise * directions).sum(1, keepdim=True) * directions, dim=1)
        x = cosines[:, None] * directions + (1 - cosines.square()).clamp(min=0).sqrt()[:, None] * across
        return x.to(self.directions), component.to(self.directions.device)

    # ---------------------------------------------------------------- keeping

    @property
    def is_fitted(self) -> bool:
        """Whether there are parameters to ask."""
        return bool(self.fitted)

    def require_fitted(self) -> None:
        """Raise a `RuntimeError` unless there are parameters to ask."""
        if not self.is_fitted:
            raise RuntimeError("this DirectionalMixture is not fitted yet: call fit first")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and parameters to a safetensors file."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        settings["init"] = self.init.tolist() if isinstance(self.init, Tensor) else self.init
        settings["generator"] = self.generator if isinstance(self.generator, int) else None
        settings["step_size"] = files.plain_step_size(self.step_size)
        settings["dtype"] = str(self.directions.dtype).removeprefix("torch.")
        record = {name: getattr(self, name) for name in ("n_iter_", "converged_", "history_")}
        files.write(path, self.state_dict(), settings, record, kind=type(self).__name__)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Self:
        """The mixture that `save` wrote. Nothing in the file is executed."""
        tensors, settings, record = files.read(path, cls.__name__)
        settings["step_size"] = files.step_size_of(settings["step_size"])
        mixture = cls(**{**settings, "dtype": getattr(torch, settings["dtype"]), "device": device})
        mixture.load_state_dict(tensors)
        for name, value in record.items():
            setattr(mixture, name, value)
        return mixture

    def extra_repr(self) -> str:
        """The settings that matter for reading a printed network."""
        state = "" if self.is_fitted else ", not fitted"
        return f"n_components={self.n_components}, n_features={self.n_features}, family={self.family!r}{state}"

    # ---------------------------------------------------------------- inside

    @property
    def _result_dtype(self) -> torch.dtype:
        return torch.promote_types(self.directions.dtype, torch.float32)

    def _present(self) -> Directions:
        return Directions(exact(self.weights), exact(self.directions), exact(self.concentration))

    def _remember(self, averages: Tensor, seen: Tensor) -> None:
        self.running, self.seen = averages.to(self.running), seen.to(self.seen)

    def _adopt(self, parameters: Directions) -> None:
        self.weights = parameters.weights.to(self.weights)
        self.directions = parameters.directions.to(self.directions)
        self.concentration = parameters.concentration.to(self.concentration)
        self.fitted = torch.ones_like(self.fitted)

    def _chunks(
        self,
        data: Data,
        sample_weight: Tensor | np.ndarray | None = None,
        responsibilities: Tensor | np.ndarray | None = None,
        *,
        may_be_empty: bool = False,
    ) -> Chunks:
        return Chunks(
            data,
            self.n_features,
            self.directions.device,
            self.chunk_size or chunk_size(self.n_components, self.n_features),
            sample_weight=sample_weight,
            responsibilities=responsibilities,
            n_components=self.n_components,
            may_be_empty=may_be_empty,
        )

    def _log_prob(self, cosines: Tensor, parameters: Directions) -> Tensor:
        """Log f (n, K) from the cosines (n, K)."""
        family, concentration = FAMILIES[self.family], parameters.concentration
        constant = family.log_normalizer(concentration.detach().cpu().numpy(), self.n_features)
        logs = family.log_kernel(cosines, concentration.to(cosines), self.n_features)
        return logs + torch.from_numpy(constant).to(cosines)

    def _start(
        self, sample: sampling.Sample, given: Chunks | None, generator: torch.Generator | None, *, goes_on: bool
    ) -> Directions:
        """The present parameters, or those of hard clusters around centres, or of responsibilities."""
        if goes_on:
            return self._present()
        K, d, units = self.n_components, self.n_features, unit(sample.x)
        if isinstance(self.init, Tensor):
            centres = unit(self.init.to(units))
        else:
            centres = unit(initialization.CENTRES[self.init](units, sample.weight, K, generator))
        if given is None:
            labels = initialization.nearest(units, centres)
            given = Chunks(
                units, d, units.device, chunk_size(K, d), sample_weight=sample.weight, responsibilities=labels,
                n_components=K,
            )  # fmt: skip
        none = exact(units.new_zeros(K))
        base = Directions(none + 1 / K, exact(centres), none)
        sums = self._expectation(base, given)
        return self._maximization(base, sums, credit=START_ROWS * float(sums.weight) / sample.rows)

    def _iterate(self, parameters: Directions, chunks: Chunks) -> tuple[Directions, Sums, list[float], bool]:
        """The outcome of EM and its sums, the mean log-likelihood on the way, and whether it has converged."""
        history: list[float] = []
        for step in range(self.max_iter + 1):
            sums = self._expectation(parameters, chunks)
            history.append(float(sums.log_likelihood / sums.weight))
            converged = what_is_left(history) <= self.tol
            if converged or step == self.max_iter:
                break
            parameters = self._maximization(parameters, sums)
        return parameters, sums, history, converged

    def _expectation(self, parameters: Directions, chunks: Chunks) -> Sums:
        dtype = self._result_dtype
        K, d = parameters.directions.shape
        zeros = parameters.weights.new_zeros
        n, mass, resultant, log_likelihood, weight = zeros(K), zeros(K), zeros(K, d), zeros(()), zeros(())
        for chunk in chunks:
            x = unit(chunk.x.to(dtype))
            cosines = x @ parameters.directions.to(dtype).T
            if chunk.responsibilities is None:
                logs, shares = evidence(self._log_prob(cosines, parameters) + parameters.weights.log().to(dtype))
            else:
                logs, shares = x.new_zeros(len(x)), chunk.responsibilities.to(dtype)
            rows = exact(torch.ones_like(logs) if chunk.weight is None else chunk.weight)
            shares = shares * rows.to(dtype)[:, None]
            weighted = shares * FAMILIES[self.family].row_weights(cosines, parameters.concentration.to(dtype))
            n += column_sums(shares)
            mass += column_sums(weighted)
            resultant += cross_moments(weighted, x)
            log_likelihood += rows @ exact(logs)
            weight += rows.sum()
        return Sums(n, mass, resultant, log_likelihood, weight)

    def _maximization(self, parameters: Directions, sums: Sums, *, credit: float = 0.0) -> Directions:
        """Parameters from sums, and this weight of uniform rows; components without rows stay what they are."""
        alive = sums.n > DEAD * sums.weight
        length = sums.resultant.norm(dim=1)
        n = torch.where(alive, sums.n, 1.0) + credit * alive
        family, arrays = FAMILIES[self.family], (n, sums.mass + credit, length)
        n_rows, mass, resultant = (part.cpu().numpy() for part in arrays)
        found = family.estimate(n_rows, mass, resultant, self.n_features)
        concentration = torch.from_numpy(found).to(length)
        directions = torch.where((alive & (length > 0))[:, None], unit(sums.resultant), parameters.directions)
        weights = (sums.n / sums.n.sum()).clamp(min=torch.finfo(torch.float32).tiny)
        return Directions(weights, directions, torch.where(alive, concentration, parameters.concentration))


def unit(x: Tensor) -> Tensor:
    """Rows (n, d) divided by their norms.

    Raises:
        ValueError: a row is zero, and has no direction.
    """
    norms = x.detach().abs().amax(1)
    if not bool((norms > 0).all()):
        raise ValueError(f"rows must have a direction, but row {int((norms == 0).nonzero()[0])} of a chunk is zero")
    return normalize(x / norms[:, None], dim=1)
