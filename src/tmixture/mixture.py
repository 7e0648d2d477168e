"""`StudentTMixture`: the mixture as a module."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from tqdm.auto import tqdm
from typing_extensions import Self

from tmixture import candidates, diagnostics, em, files, initialization, sampling, validation
from tmixture import distributed as communication
from tmixture.chunks import Chunk, Chunks, Data, check_finite, chunk_size, gpu_chunk_size
from tmixture.density import Density, working_density
from tmixture.parameters import Parameters, accumulation_dtype
from tmixture.precision import exact_arithmetic, full_precision
from tmixture.scales import STRUCTURES, Scale
from tmixture.statistics import SufficientStatistics
from tmixture.streaming import PowerDecay, RunningStatistics, StepSize, rate_of
from tmixture.trainable import train_by_gradients

# Regularisation of the scale diagonals, relative to the data's mean variance.
RELATIVE_REGULARIZATION = 1e-6
# With reg_covar=0, what keeps a component of identical points finite.
RELATIVE_FLOOR = 1e-12
# A stream is initialised anew with every batch until it has brought this many rows per component.
WARMUP_ROWS = 10
WARMUP_ITERATIONS = 10
# A component of a stream that is left with less than this many rows in the stream's memory has died.
DEAD_ROWS = 1e-6


class StudentTMixture(nn.Module):
    """A mixture of K multivariate Student-t distributions, fitted by EM.

    The density is Σ_k π_k·T(x; μ_k, Σ_k, ν_k) (Peel & McLachlan 2000; Eqs. 1 and 2 of the CXR-CML paper). The heavy
    tails make the fit robust: a point far from every mean gets a small outlier weight u = (ν+d)/(ν+δ) and hardly moves
    the parameters. ν = ∞ is exactly the Gaussian mixture.

    Parameters live in buffers, so `.to()`, `state_dict` and being part of another network work as for `BatchNorm`.
    Input of any floating or integer dtype is accepted by all methods; what is computed is at least float32, whatever
    autocast and `torch.set_float32_matmul_precision` say.

    Args:
        n_components: K.
        n_features: d.
        dof: degrees of freedom ν > 0: a number, `float("inf")`, or one per component; the start if they are learned.
        learn_dof: False, or "shared" or "component" to learn one ν, or one per component.
        covariance_type: structure of the scale matrices: "full", "tied", "diag", "spherical" or "lowrank".
        rank: q of "lowrank", Σ = ΛΛᵀ + Ψ with Λ (d, q) and a diagonal Ψ: a mixture of t-factor analyzers, for
            components whose features are correlated but whose rows are too few for "full".
        reg_covar: added to the scale diagonals: an absolute number in squared units of the data, or "auto" for 1e-6 of
            the data's mean variance.
        init: "kmeans", "kmeans++", "random", or means (K, d) to start from.
        n_init: how many starts to try; the fit with the highest likelihood is kept.
        max_iter: upper bound of the M-steps of a fit.
        tol: a fit has converged when the mean log-likelihood changes by at most this, relative to its size. A fit that
            ends at `max_iter` gives a `ConvergenceWarning`, unless `tol` is 0.
        scale_update: "px" (converges in a few iterations in high dimension) or "classic".
        dof_bounds: bounds of a learned ν.
        step_size: step sizes of `partial_fit`: a constant, or a function of the number of the batch.
        warm_start: whether `fit` starts from the current parameters, if there are any.
        max_candidates: C, at most K. If given, `fit` compares each row with C promising components only, instead of
            all K, and forgets the rest: for hundreds of components and more, in a fraction of the time. 16 to 64 are
            plenty where clusters are distinct. What EM then raises is a lower bound of the log-likelihood. Everything
            but `fit` stays exact, `partial_fit` included.
        chunk_size: rows worked on at a time; chosen from K and d if None.
        allow_tf32: whether a GPU may round the factors of float32 products to the eleven bits of TF32, which is faster.
            By default they are float32 whatever torch is set to.
        distributed: whether every process of the default group brings a share of the data; they end with the same
            parameters as one process with all data. `fit`, `partial_fit` and the scores are then collective
            operations: every process calls them. An error in one of them is one in all.
        generator: source of randomness, or a seed; None is torch's default generator.
        verbose: whether `fit` shows a progress bar.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weights: (K,) π, buffer.
        means: (K, d) μ, buffer.
        whitening: buffer; the inverse Cholesky factors of the scale matrices (K, d, d) or (d, d), or reciprocal
            standard deviations (K, d) or (K,), depending on the structure; of Ψ (K, d) for "lowrank".
        loadings: (K, d, q) Λ, buffer; "lowrank" only.
        dof: (K,) ν, buffer.
        n_iter_: number of M-steps of the last fit.
        converged_: whether it converged.
        history_: mean log-likelihood per unit of sample weight, before each M-step and at the end; its lower bound with
            `max_candidates`.
        n_reseeded_: how often a component had to be started anew, streaming included.
        disagreement_: after a fit with `max_candidates` the share of rows whose best candidate is not the best of all
            components, from about 2000 random rows; None after an exact fit. Where it is large, C is too small, or
            there are no distinct clusters.

    Examples:
        >>> mixture = StudentTMixture(n_components=3, n_features=2, generator=0).fit(torch.randn(500, 2))
        >>> mixture.predict(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    weights: Tensor
    means: Tensor
    dof: Tensor
    initial_dof: Tensor
    fitted: Tensor

    def __init__(
        self,
        n_components: int,
        n_features: int,
        *,
        dof: float | Tensor | list[float] = 4.0,
        learn_dof: Literal[False, "shared", "component"] = False,
        covariance_type: str = "diag",
        rank: int | None = None,
        reg_covar: float | Literal["auto"] = "auto",
        init: str | Tensor | np.ndarray = "kmeans",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-5,
        scale_update: Literal["px", "classic"] = "px",
        dof_bounds: tuple[float, float] = (0.5, 200.0),
        step_size: StepSize = PowerDecay(),
        warm_start: bool = False,
        max_candidates: int | None = None,
        chunk_size: int | None = None,
        allow_tf32: bool = False,
        distributed: bool = False,
        generator: torch.Generator | int | None = None,
        verbose: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_components = validation.positive_integer(n_components, "n_components")
        self.n_features = validation.positive_integer(n_features, "n_features")
        self.covariance_type = validation.one_of(covariance_type, tuple(STRUCTURES), "covariance_type")
        self.rank = validation.rank(rank, covariance_type, self.n_features)
        self.learn_dof = validation.one_of(learn_dof, (False, "shared", "component"), "learn_dof")
        self.scale_update = validation.one_of(scale_update, ("px", "classic"), "scale_update")
        self.dof_bounds = validation.bounds(dof_bounds, "dof_bounds")
        self.reg_covar = validation.regularization(reg_covar)
        self.init = validation.init(init, tuple(initialization.CENTRES), n_components, n_features)
        self.n_init = validation.positive_integer(n_init, "n_init")
        self.max_iter = validation.positive_integer(max_iter, "max_iter")
        self.tol = validation.not_negative(tol, "tol")
        self.step_size = validation.step_size(step_size)
        self.warm_start = warm_start
        self.max_candidates = validation.at_most(max_candidates, n_components, "max_candidates")
        self.chunk_size = None if chunk_size is None else validation.positive_integer(chunk_size, "chunk_size")
        self.allow_tf32 = allow_tf32
        self.distributed = distributed
        self.generator = validation.generator(generator)
        self.verbose = verbose

        start = validation.dof(dof, n_components, self.learn_dof, self.dof_bounds)
        placement: dict[str, Any] = {"device": device, "dtype": validation.floating(dtype or torch.get_default_dtype())}
        nowhere = torch.zeros(n_components, n_features, device=device)
        unfitted = initialization.uniform(nowhere, self._isotropic(1.0, nowhere.device), start)
        for name, tensor in unfitted.tensors().items():
            self.register_buffer(name, tensor.to(**placement))
        self.register_buffer("initial_dof", start.clone().to(**placement))
        self.register_buffer("fitted", torch.tensor(False, device=device))
        self.running = RunningStatistics().to(device=device)
        self._refresh()

        self.n_iter_ = 0
        self.converged_ = False
        self.history_: list[float] = []
        self.n_reseeded_ = 0
        self.disagreement_: float | None = None

    # ---------------------------------------------------------------- learning

    def fit(
        self,
        data: Data,
        sample_weight: Tensor | np.ndarray | None = None,
        *,
        responsibilities: Tensor | np.ndarray | None = None,
    ) -> Self:
        """Fit by EM on all of the data, whatever its size: at most one chunk of it is worked on at a time.

        The result does not depend on the chunking but for rounding. If it is interrupted (Ctrl-C), the parameters
        reached so far are kept and the interrupt is raised again; after any other error everything is as it was. Of
        several processes any may be without rows; after an error in one of them, interrupts included, everything is as
        it was in all.

        Args:
            data: a tensor, an array or a memory map (N, d); the path of an `.npy` file; a list of those (shards of one
                data set); or an iterable of batches that can be iterated again, such as a `DataLoader`, where a batch
                is a tensor (n, d) or a tuple whose first item is. A loader must bring the same rows at every iteration,
                and in the same order if `sample_weight`, `responsibilities` or `max_candidates` are given.
            sample_weight: (N,) weights, not negative. An integer weight counts as that many repeated rows.
            responsibilities: labels (N,) or responsibilities (N, K) to start from instead of `init`.

        Returns:
            The module itself.

        Raises:
            ValueError: the data has the wrong shape, NaN or infinite values, or fewer rows than components.
            RuntimeError: another process failed, and the message says which and why; or one stopped answering.
        """
        generator = self._generator()
        fits: list[em.Fit] = []
        with self._exact_arithmetic():
            with self._together():
                chunks = self._chunks(data, sample_weight, truncated=self.max_candidates is not None)
                given = None if responsibilities is None else self._chunks(data, sample_weight, responsibilities)
                sample = self._draw_sample(chunks, generator)
                variance = sampling.mean_variance(sample)
                rules = self._rules(variance)
                try:
                    for _ in range(self.n_init):
                        start = self._start(sample, given, rules, variance, generator)
                        fits = [*fits, em.Fit()]
                        self._run(fits[-1], chunks, start, rules, generator)
                        fits = [max(fits, key=lambda fit: fit.history[-1])]
                except KeyboardInterrupt:
                    begun = [fit for fit in fits if fit.last is not None]
                    if begun and not self._has_company:
                        self._conclude(max(begun, key=lambda fit: fit.history[-1]), rules)
                    raise
            self._conclude(fits[0], rules)
        diagnostics.warn_about(self, fits[0])
        return self

    def fit_predict(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> Tensor:
        """`fit`, then `predict`: labels (N,)."""
        return self.fit(data, sample_weight).predict(data)

    def partial_fit(self, batch: Tensor | np.ndarray, sample_weight: Tensor | np.ndarray | None = None) -> Self:
        """Learn from one batch of a stream: a step of stepwise EM (Cappé & Moulines 2009).

        The running statistics become (1 − η)·running + η·batch, and an M-step follows. Without an earlier `fit`, the
        first batches are kept until they bring 10 rows per component; from K rows on the mixture is fitted to what is
        there with every call. After a `fit`, the stream goes on from its statistics; parameters that were given count
        as if fitted to 10 rows per component.

        η = `step_size(t)`, where the batch is the t-th of its size if all rows so far had come in such batches.

        Args:
            batch: (n, d), n ≥ 1.
            sample_weight: (n,), not negative. A batch whose weights are all zero changes nothing.

        Returns:
            The module itself.

        Raises:
            ValueError: the batch has the wrong shape, or values that are not finite. Nothing has changed then.
            RuntimeError: another process failed, and the message says which and why; or one stopped answering.
        """
        with self._exact_arithmetic():
            with self._together():
                chunks = self._chunks(batch, sample_weight)
                if self._is_fitted and not self.running.started and self.running.warmup is None:
                    self._begin_stream_from_parameters()
                commit = self._continue_stream(chunks) if self.running.started else self._begin_stream(chunks)
            commit()
        return self

    def _begin_stream_from_parameters(self) -> None:
        """Take parameters that were given and not fitted for the outcome of a warm-up."""
        parameters = self._current().to(accumulation_dtype(self.means.device))
        rows, variance = WARMUP_ROWS * self.n_components, self._variance_within()
        self.running.set(SufficientStatistics.expected(parameters, rows))
        self.running.total_weight = parameters.weights.new_tensor(float(rows))
        self.running.regularization = parameters.weights.new_tensor(self._rules(variance).regularization)
        self.running.variance = parameters.weights.new_tensor(variance)

    def _begin_stream(self, chunks: Chunks) -> Callable[[], None]:
        """Fit to all rows kept so far and those of the batch; returns what makes it so."""
        generator = self._generator()
        sample = sampling.draw_sample(chunks, sys.maxsize, self.means.dtype, generator, shared=self.distributed)
        if sample.rows == 0:
            return lambda: None
        if self.running.warmup is not None:
            x = torch.cat([self.running.warmup, sample.x.to(self.running.warmup)])
            weight = torch.cat([self.running.warmup_weight, sample.weight.to(self.running.warmup_weight)])
            sample = sampling.Sample(x, weight, len(x))
        if sample.rows < self.n_components:
            return lambda: self.running.keep(sample.x, sample.weight)
        variance = sampling.mean_variance(sample)
        prior_rows = initialization.prior_rows(self._current().scale, self.n_features)
        rules = replace(
            self._rules(variance),
            distributed=False,
            prior_rows=prior_rows,
            prior_variance=variance,
            anchor_rows=WARMUP_ROWS,
        )
        start = self._start(sample, None, rules, variance, generator)
        fit = em.Fit()
        for step in em.iterate(
            [Chunk(sample.x, sample.weight)],
            start,
            rules,
            dtype=self.means.dtype,
            max_iter=WARMUP_ITERATIONS,
            tol=self.tol,
            generator=generator,
            max_reseeds=0,
        ):
            fit.record(step)

        def commit() -> None:
            step = fit.step
            self._commit(step.parameters)
            if sample.rows < WARMUP_ROWS * self.n_components:
                self.running.keep(sample.x, sample.weight)
            else:
                self.running.start(
                    step.statistics, step.parameters.scale, rules.regularization, self._variance_within()
                )

        return commit

    def _continue_stream(self, chunks: Chunks) -> Callable[[], None]:
        """Blend the batch into the running statistics, update the parameters from them; returns what makes it so."""
        running = self.running
        parameters = self._current().to(accumulation_dtype(self.means.device))
        scale = parameters.scale
        prior_rows = initialization.prior_rows(scale, self.n_features)
        rules = replace(
            self._rules(0.0),
            regularization=float(running.regularization),
            prior_rows=prior_rows,
            prior_variance=float(running.variance),
            anchor_rows=WARMUP_ROWS,
        )
        batch = em.expectation(self._checked(chunks), parameters, rules, self.means.dtype)
        if not batch.weight > 0:
            return lambda: None
        total_weight = running.total_weight + batch.weight
        rate = rate_of(self.step_size, float(total_weight / batch.weight))
        blended = running.get().blend(batch.about(scale, running.reference).per_unit_weight(), rate)
        # The rows that the averages remember.
        blended.rows = batch.rows / rate
        parameters = em.maximization(blended, parameters, rules)
        blended = blended.standardized(scale)
        faded = blended.responsibility * blended.rows < DEAD_ROWS
        # Means that were given wait where they are for their first rows, which may come late in a sorted stream.
        dead = [] if isinstance(self.init, Tensor) else faded.nonzero()[:, 0].tolist()
        if dead:
            candidates = em.poorly_explained(
                chunks, parameters, len(dead), self.means.dtype, self._generator(), synchronize=self.distributed
            )
            restarted, source = em.reseed(parameters, dead, candidates)
            blended = blended.about(scale, parameters.means).take(scale, source, restarted.means)
            parameters = restarted

        def commit() -> None:
            self.n_reseeded_ += len(dead)
            running.set(blended)
            running.total_weight = total_weight
            self._commit(parameters)

        return commit

    # ---------------------------------------------------------------- asking

    def forward(self, x: Tensor) -> Tensor:
        """Responsibilities r_ik = p(component k | x_i): (n, d) → (n, K), differentiable."""
        return self._joint(x).softmax(1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """The same as `forward`."""
        return self(x)

    def top_responsibilities(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest responsibilities of each row, descending, and their components: both (n, k)."""
        if not 1 <= k <= self.n_components:
            raise ValueError(f"k must lie in 1 … n_components={self.n_components}, got {k}")
        joint = self._joint(x)
        values, components = joint.topk(k, dim=1)
        return (values - joint.logsumexp(1, keepdim=True)).exp(), components

    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log T(x_i; μ_k, Σ_k, ν_k): (n, d) → (n, K), differentiable."""
        with self._full_precision():
            density, distances = self._distances(x)
            return density.log_prob(distances).to(self._result_dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_i) of the mixture: (n, d) → (n,), differentiable, usable as a (negative) loss."""
        return self._joint(x).logsumexp(1)

    def outlier_weights(self, x: Tensor) -> Tensor:
        """u_ik = (ν_k + d)/(ν_k + δ_ik): (n, d) → (n, K), differentiable.

        Near 1 for ordinary points of component k, near 0 for points far from it, exactly 1 where ν = ∞.
        """
        with self._full_precision():
            density, distances = self._distances(x)
            return density.outlier_weights(distances).to(self._result_dtype)

    @torch.no_grad()
    def predict(self, data: Data) -> Tensor:
        """The component with the largest responsibility for each row: labels (N,), int64.

        Takes whatever `fit` takes, one chunk at a time.
        """
        return torch.cat([self._joint(chunk.x).argmax(1) for chunk in self._checked(self._chunks(data))])

    def score(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """The mean log-likelihood per unit of sample weight."""
        return self.information_criteria(data, sample_weight)["log_likelihood"]

    def bic(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """The Bayesian information criterion −2·log L + p·log N; smaller is better."""
        return self.information_criteria(data, sample_weight)["bic"]

    def aic(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """Akaike's information criterion −2·log L + 2p; smaller is better."""
        return self.information_criteria(data, sample_weight)["aic"]

    def icl(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> float:
        """The integrated completed likelihood: BIC + 2·Σ_i entropy(r_i) (Biernacki et al. 2000); smaller is better."""
        return self.information_criteria(data, sample_weight)["icl"]

    @torch.no_grad()
    def information_criteria(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> dict[str, float]:
        """Mean "log_likelihood", "bic", "aic" and "icl" from one pass over the data.

        Takes whatever `fit` takes, one chunk at a time. N in the criteria is the sum of the sample weights.
        """
        exact = accumulation_dtype(self.means.device)
        totals = torch.zeros(3, dtype=exact, device=self.means.device)
        with self._together():
            for chunk in self._checked(self._chunks(data, sample_weight)):
                joint = self._joint(chunk.x)
                weight = joint.new_ones(len(joint), dtype=exact) if chunk.weight is None else chunk.weight.to(exact)
                log_prob = joint.logsumexp(1)
                logs = joint - log_prob[:, None]
                entropy = -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(1)
                totals += torch.stack([weight @ log_prob.to(exact), weight.sum(), weight @ entropy.to(exact)])
            if self.distributed:
                communication.sum_in_place([totals])
        log_likelihood, weight_sum, entropy_sum = totals.tolist()
        if not weight_sum > 0:
            raise ValueError("sample_weight is zero for every row")
        p = self.n_free_parameters
        bic = -2 * log_likelihood + p * math.log(weight_sum)
        return {
            "log_likelihood": log_likelihood / weight_sum,
            "bic": bic,
            "aic": -2 * log_likelihood + 2 * p,
            "icl": bic + 2 * entropy_sum,
        }

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n points (n, d) and the components (n,) that they come from."""
        self._require_fitted()
        n = validation.positive_integer(n, "n")
        parameters = self._current().to(torch.device("cpu"))
        component = torch.multinomial(parameters.weights.float(), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.n_features, generator=generator, dtype=self._result_dtype)
        dof = parameters.dof.to(noise)[component]
        half = torch.where(dof.isinf(), 1.0, dof) / 2
        precision = torch.where(dof.isinf(), 1.0, torch._standard_gamma(half, generator=generator) / half)
        scaled = parameters.scale.to(noise.dtype).correlate(noise, component) / precision.sqrt()[:, None]
        x = parameters.means.to(noise)[component] + scaled
        return x.to(self.means.device), component.to(self.means.device)

    # ---------------------------------------------------------------- parameters

    @property
    def scales(self) -> Tensor:
        """The scale matrices Σ written out: (K, d, d)."""
        return self._current().scale.dense(self.n_components, self.n_features)

    @property
    def covariances(self) -> Tensor:
        """The covariance matrices ν/(ν−2)·Σ: (K, d, d). Infinite where ν ≤ 2."""
        factor = torch.where(self.dof.isinf(), 1.0, self.dof / (self.dof - 2))
        return torch.where((self.dof > 2)[:, None, None], self.scales * factor[:, None, None], float("inf"))

    @property
    def n_free_parameters(self) -> int:
        """p, the number of free parameters, for information criteria."""
        K, d = self.n_components, self.n_features
        dof = {False: 0, "shared": 1, "component": K}[self.learn_dof]
        return K - 1 + K * d + self._current().scale.n_parameters(K, d) + dof

    @classmethod
    def from_parameters(
        cls,
        weights: Tensor | np.ndarray,
        means: Tensor | np.ndarray,
        scales: Tensor | np.ndarray,
        *,
        dof: float | Tensor | list[float] = 4.0,
        covariance_type: str = "full",
        **settings: Any,
    ) -> Self:
        """A mixture with given parameters, ready to be asked, or to be fitted further with `warm_start=True`.

        Args:
            weights: (K,), not negative, not all zero; they are normalised.
            means: (K, d).
            scales: scale matrices (K, d, d), of which a structure other than "full" keeps the closest it can hold.
            dof: as for the constructor.
            covariance_type: as for the constructor.
            **settings: further arguments of the constructor.
        """
        means = torch.as_tensor(means).detach()
        if means.dim() != 2:
            raise ValueError(f"means must have shape (K, d), got {tuple(means.shape)}")
        if not means.isfinite().all():
            raise ValueError(
                f"means must be finite, but that of component {int((~means.isfinite()).nonzero()[0, 0])} is not"
            )
        K, d = means.shape
        settings = {"dtype": means.dtype if means.is_floating_point() else None, **settings}
        mixture = cls(K, d, dof=dof, covariance_type=covariance_type, **settings)
        given = validation.weights(weights, K).double()
        scale = mixture._structure.from_dense(validation.covariance_matrices(scales, K, d).double(), mixture.rank or 0)
        mixture._commit(Parameters(given / given.sum(), means.double(), scale, mixture.dof.double()))
        return mixture

    def reorder(self, components: Tensor | list[int]) -> Self:
        """Renumber the components: the new component k is the present component `components[k]`.

        The density, and the stream that `partial_fit` continues, stay what they are.
        """
        order = torch.as_tensor(components, device=self.means.device)
        if order.dim() != 1 or sorted(order.tolist()) != list(range(self.n_components)):
            raise ValueError(f"components must be a permutation of 0 … {self.n_components - 1}, got {order.tolist()}")
        self._require_fitted()
        with self._exact_arithmetic():
            self._commit(self._current().take(order))
            if self.running.started:
                self.running.set(self.running.get().reorder(self._current().scale, order))
        return self

    def train_by_gradients(self) -> Self:
        """Turn the parameters into `nn.Parameter`s, so that an optimizer can train them through `log_prob`.

        Weights stay on the simplex, scales positive definite and finite ν positive. `fit` still works. It cannot be
        undone, and the module can then be saved by `state_dict` but not pickled.
        """
        structure = {name: constraint for name, constraint in self._structure.constraints.items()}
        tensors = {"weights": constraints.simplex, "means": constraints.real, **structure}
        if not self.dof.isinf().any():
            tensors["dof"] = constraints.positive
        train_by_gradients(self, tensors)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a safetensors file: settings, parameters and the statistics of a stream.

        The generator is not saved unless it is a seed.
        """
        files.write(path, self.state_dict(), self._settings())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Self:
        """The mixture that `save` wrote. Nothing in the file is executed."""
        tensors, settings = files.read(path)
        record = settings.pop("record")
        step = settings["step_size"]
        settings["step_size"] = PowerDecay(**step) if isinstance(step, dict) else step
        settings["dtype"] = getattr(torch, settings["dtype"])
        mixture = cls(**settings, dof=tensors["initial_dof"].tolist(), device=device)
        mixture.load_state_dict(tensors)
        for name, value in record.items():
            setattr(mixture, name, value)
        return mixture

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The settings that matter for reading a printed network."""
        low, high = float(self.dof.min()), float(self.dof.max())
        dof = f"{low:g}" if low == high else f"{low:g} … {high:g}"
        learned = f", learn_dof={self.learn_dof!r}" if self.learn_dof else ""
        rank = f", rank={self.rank}" if self.rank else ""
        state = "" if self._is_fitted else ", not fitted"
        return (
            f"n_components={self.n_components}, n_features={self.n_features}, "
            f"covariance_type={self.covariance_type!r}{rank}, dof={dof}{learned}{state}"
        )

    # ---------------------------------------------------------------- inside

    @property
    def _structure(self) -> type[Scale]:
        return STRUCTURES[self.covariance_type]

    @property
    def _result_dtype(self) -> torch.dtype:
        return torch.promote_types(self.means.dtype, torch.float32)

    def _isotropic(self, variance: float, device: torch.device) -> Scale:
        """Scale matrices variance·I for every component."""
        variances = torch.full((self.n_components,), variance, dtype=accumulation_dtype(device), device=device)
        return self._structure.isotropic(variances, self.n_features, self.rank or 0)

    def _current(self) -> Parameters:
        scale = self._structure(**{name: getattr(self, name) for name in self._structure.constraints})
        return Parameters(self.weights, self.means, scale, self.dof)

    def _commit(self, parameters: Parameters) -> None:
        """Make these the parameters of the module."""
        with torch.no_grad():
            for name, value in parameters.tensors().items():
                current = getattr(self, name)
                # Row-major, as it will be when it comes back from a file: other layouts may round differently.
                value = value.to(current).clone(memory_format=torch.contiguous_format)
                if name in self._parameters:
                    self._parameters[name].copy_(value)  # type: ignore[union-attr]
                else:
                    setattr(self, name, value)
        self.fitted = torch.ones_like(self.fitted)
        self._refresh()

    def _refresh(self) -> None:
        """Bring what is derived from the buffers up to date."""
        if self.means.is_meta:
            self._is_fitted, self._working_dtype = False, self._result_dtype
            return
        with self._exact_arithmetic():
            self._is_fitted = bool(self.fitted)
            self._working_dtype = working_density(self._current(), self.means.dtype).dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._refresh()
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        # A mixture is loaded whole or not at all: half of one would pass for fitted.
        tensors = (*self._parameters.items(), *self._buffers.items())
        own = {prefix + name: tensor for name, tensor in tensors if tensor is not None}
        wrong = [name for name in own.keys() & state_dict.keys() if state_dict[name].shape != own[name].shape]
        if wrong or not own.keys() <= state_dict.keys():
            missing.extend(name for name in own if strict and name not in state_dict)
            errors.extend(
                f"size mismatch for {name}: {tuple(state_dict[name].shape)} in the state, {tuple(own[name].shape)} here"
                for name in sorted(wrong)
            )
            # The running statistics, whose turn is next, stay with the parameters.
            for name in [name for name in state_dict if name.startswith(f"{prefix}running.")]:
                del state_dict[name]
            self.running.state_dict(destination=state_dict, prefix=f"{prefix}running.")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        self._refresh()

    def _require_fitted(self) -> None:
        if not self._is_fitted:
            waiting = self.running.warmup
            seen = "" if waiting is None else f" ({len(waiting)} of at least {self.n_components} rows seen)"
            raise RuntimeError(f"this StudentTMixture is not fitted yet: call fit or partial_fit first{seen}")

    def _generator(self) -> torch.Generator | None:
        if isinstance(self.generator, torch.Generator) or self.generator is None:
            return self.generator
        return torch.Generator().manual_seed(int(self.generator))

    def _chunks(
        self, data: Data, sample_weight: Any = None, responsibilities: Any = None, *, truncated: bool = False
    ) -> Chunks:
        sizes = (self.n_components * (self.rank or 1), self.n_features)
        return Chunks(
            data,
            self.n_features,
            self.means.device,
            self.chunk_size or (candidates.rows_per_chunk(*sizes) if truncated else self._fitting_chunk_size),
            sample_weight=sample_weight,
            responsibilities=responsibilities,
            n_components=self.n_components,
            in_order=truncated,
            may_be_empty=self._has_company,
        )

    @property
    def _fitting_chunk_size(self) -> int:
        sizes = (self.n_components * (self.rank or 1), self.n_features)
        if self.means.is_cuda:
            return gpu_chunk_size(*sizes, self.means.device)
        # Small on a CPU, but where chunks update K matrices, it is better to do so less often.
        cached = self.means.device.type == "cpu" and self.covariance_type != "full"
        return chunk_size(*sizes, cached=cached)

    @property
    def _has_company(self) -> bool:
        """Whether other processes bring rows, too."""
        return self.distributed and communication.is_active()

    def _together(self) -> AbstractContextManager[None]:
        """A block that ends in the same way in all processes that this mixture lives in."""
        return communication.together(self.means.device, enabled=self.distributed)

    def _full_precision(self) -> AbstractContextManager[None]:
        """A block whose products nothing outside makes less precise."""
        return full_precision(self.means.device, allow_tf32=self.allow_tf32)

    def _exact_arithmetic(self) -> AbstractContextManager[None]:
        """The same without autograd, for what is kept."""
        return exact_arithmetic(self.means.device, allow_tf32=self.allow_tf32)

    def _checked(self, chunks: Chunks) -> Iterator[Chunk]:
        """The chunks, once the module is known to be fitted and each to be finite."""
        self._require_fitted()
        row = 0
        for chunk in chunks:
            check_finite(chunk.x, row, "data")
            row += len(chunk.x)
            yield chunk

    def _rules(self, variance: float) -> em.Rules:
        if self.reg_covar == "auto":
            regularization = RELATIVE_REGULARIZATION * (variance if variance > 0 else 1.0)
        else:
            regularization = max(self.reg_covar, RELATIVE_FLOOR * (variance if variance > 0 else 1.0))
        return em.Rules(self.scale_update, self.learn_dof, self.dof_bounds, regularization, self.distributed)

    def _draw_sample(self, chunks: Chunks, generator: torch.Generator | None) -> sampling.Sample:
        """The rows that initialisation works on, the same in all processes."""
        size = sampling.sample_size(self.n_components, self.n_features)
        sample = sampling.draw_sample(chunks, size, self.means.dtype, generator, shared=self.distributed)
        if sample.rows == 0:
            raise ValueError("sample_weight is zero for every row" if chunks.rows else "data is empty in all processes")
        if sample.rows < self.n_components:
            raise ValueError(
                f"data has {sample.rows} rows with positive weight, but n_components={self.n_components} needs at "
                "least as many"
            )
        return sampling.without_stray_rows(sample, self.n_components)

    def _start(
        self,
        sample: sampling.Sample,
        given: Chunks | None,
        rules: em.Rules,
        variance: float,
        generator: torch.Generator | None,
    ) -> Parameters:
        """The parameters that EM starts from, in float64 where the device has it.

        Args:
            sample: rows to initialise from.
            given: the data with responsibilities to start from, if there are any.
            rules: of the M-step.
            variance: mean variance of the sample.
            generator: source of randomness.
        """
        exact = accumulation_dtype(self.means.device)
        dof = self.initial_dof
        variance = max(variance, rules.regularization)  # it is zero if all rows are equal
        if self.warm_start and self._is_fitted:
            return self._current().to(exact)
        scale = self._isotropic(variance, self.means.device)
        if given is not None:
            rows = initialization.random_rows(sample.x, sample.weight, self.n_components, generator)
            if self.distributed:
                rows = communication.from_first_process(rows)  # generators may differ
            base = initialization.uniform(rows, scale, dof)
            return initialization.from_responsibilities(given, base, rules, variance, self.means.dtype)
        start = initialization.from_centres(self.init, sample, scale, dof, rules, variance, generator)
        if self.distributed:
            communication.broadcast_in_place(list(start.tensors().values()))
        return start

    def _run(
        self,
        fit: em.Fit,
        chunks: Chunks,
        start: Parameters,
        rules: em.Rules,
        generator: torch.Generator | None,
    ) -> None:
        """Iterate EM, recording every step."""
        truncated = None
        if self.max_candidates is not None:
            truncated = candidates.TruncatedExpectation(chunks, rules, self.means.dtype, self.max_candidates)
        steps = em.iterate(
            chunks,
            start,
            rules,
            dtype=self.means.dtype,
            max_iter=self.max_iter,
            tol=self.tol,
            generator=generator,
            e_step=truncated,
        )
        with tqdm(total=self.max_iter, disable=not self.verbose, desc="EM", unit="it") as progress:
            for step in steps:
                fit.record(step)
                progress.update(step.n_iter - progress.n)
                progress.set_postfix_str(f"log-likelihood {step.log_likelihood:.6g}")
        if truncated is not None:
            fit.disagreement = truncated.disagreement(fit.step.parameters, generator)

    def _conclude(self, fit: em.Fit, rules: em.Rules) -> None:
        """Keep the outcome of a fit."""
        step = fit.step
        self._commit(step.parameters)
        self.running.start(step.statistics, step.parameters.scale, rules.regularization, self._variance_within())
        self.n_iter_, self.converged_, self.history_ = step.n_iter, step.converged, fit.history
        self.n_reseeded_, self.disagreement_ = len(fit.reseeded), fit.disagreement

    def _variance_within(self) -> float:
        """Mean variance within the components."""
        variance = self._current().scale.mean_variance(self.n_features)
        return float((self.weights * variance).sum())

    def _distances(self, x: Tensor) -> tuple[Density, Tensor]:
        self._require_fitted()
        x = validation.batch(x, self.n_features)
        density = Density(self._current(), self._working_dtype)
        return density, density.mahalanobis(density.features(x))

    def _joint(self, x: Tensor) -> Tensor:
        """Log π_k + log T(x_i; μ_k, Σ_k, ν_k): (n, K)."""
        with self._full_precision():
            density, distances = self._distances(x)
            return (density.log_weights + density.log_prob(distances)).to(self._result_dtype)

    def _settings(self) -> dict[str, Any]:
        """What `load` needs beside the tensors; plain values only."""
        if isinstance(self.step_size, PowerDecay):
            step: Any = {"exponent": self.step_size.exponent, "offset": self.step_size.offset}
        elif callable(self.step_size):
            raise ValueError("step_size is a function, which a file cannot hold: set it to a number or a PowerDecay")
        else:
            step = self.step_size
        plain = (
            "n_components", "n_features", "covariance_type", "rank", "learn_dof", "scale_update", "dof_bounds",
            "reg_covar", "n_init", "max_iter", "tol", "warm_start", "max_candidates", "chunk_size", "allow_tf32",
            "distributed", "verbose",
        )  # fmt: skip
        record = ("n_iter_", "converged_", "history_", "n_reseeded_", "disagreement_")
        return {
            **{name: getattr(self, name) for name in plain},
            "init": self.init if isinstance(self.init, str) else self.init.tolist(),
            "generator": self.generator if isinstance(self.generator, int) else None,
            "step_size": step,
            "dtype": str(self.means.dtype).removeprefix("torch."),
            "record": {name: getattr(self, name) for name in record},
        }
