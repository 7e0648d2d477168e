"""`StudentTMixture`: the mixture as a module that fits itself to data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from tmixture import candidates, diagnostics, fitting, initialization, sampling, streaming, validation
from tmixture.data.chunks import Chunks, Data, check_stream_weights, unit_of
from tmixture.frozen import Frozen, require_values
from tmixture.known import KnownRows, anchored
from tmixture.maximization import Rules
from tmixture.model import MixtureModel
from tmixture.notices import each_once
from tmixture.numerics import accumulation_dtype, exact
from tmixture.parameters import Parameters
from tmixture.priors import Prior
from tmixture.scales import STRUCTURES
from tmixture.settings import CovarianceType, Init
from tmixture.step_sizes import PowerDecay, StepSize


class StudentTMixture(MixtureModel):
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
        covariance_type: structure of the scale matrices: "full", "diag", "spherical" or "lowrank", or one for all
            components: "tied", "tied_diag" or "tied_spherical".
        rank: q of "lowrank", Σ = ΛΛᵀ + Ψ with Λ (d, q) and a diagonal Ψ: a mixture of t-factor analyzers, for
            components whose features are correlated but whose rows are too few for "full".
        reg_covar: added to the diagonal of the scale of a component of average size, and to that of a smaller one as
            much more as it is smaller: an absolute number in squared units of the data, or "auto" for 1e-6 of the
            variance of each feature, for which outliers do not count.
        init: "kmeans", "kmeans++", "random", or means (K, d) to start from.
        n_init: how many starts to try, unless the start is given; the fit with the highest likelihood is kept, of those
            with the fewest components that have next to no variance in a feature.
        max_iter: upper bound of the M-steps of a fit; 0 keeps the start.
        tol: a fit has converged when at most this is left of the mean log-likelihood, in nats per row, as Aitken's
            extrapolation of the last steps has it. A fit that ends at `max_iter` gives a `ConvergenceWarning`, unless
            `tol` is 0.
        component_labels: the class of each component (K,), −1 for components that no row of known class belongs to; for
            `labels`. None if component k is class k.
        anchor_rows: as by how many rows, of latent precision one, each mean is held where it is known to belong: at the
            mean of its rows of known class, or else at `init`, if that gives means. These rows count for nothing else.
        prior: what is believed of all components before the data; see `Prior`.
        frozen: what learning leaves as it is: names among "weights", "means", "scales" and "dof", or a mapping of such
            names to masks (K,) of components. A fit then starts from the parameters that the mixture has. Without any
            only means that `init` gives, and ν, can be frozen.
        background: whether the last component is a background for rows that belong nowhere: with the mean and the
            variances of the rows that have no others near by, or else of the data, which stay, and a weight that is
            learned. `predict` gives its rows −1. If `init` is means, they are those of the others (K − 1, d).
        allow_missing: whether NaN says that a value is missing: at random, for reasons that the observed ones explain.
            It is a ValueError otherwise. Everything that takes rows then goes by what is observed of them, in float64.
        scale_update: "px" (converges in a few iterations in high dimension) or "classic".
        dof_bounds: bounds of a learned ν.
        step_size: step sizes of `partial_fit`: a constant, or a function of the number of the batch.
        warm_start: whether `fit` starts from the current parameters, if there are any.
        max_candidates: for thousands of components; with hundreds an exact fit takes about as long. C, at most K: `fit`
            compares each row with C promising components only, instead of all K, and forgets the rest. 16 to 64 are
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
        history_: what EM raises, before each M-step and at the end: the mean log-likelihood per unit of sample weight
            (its lower bound with `max_candidates`) less ½·mean_k Σ_j reg_covar_j·(Σ_k⁻¹)_jj, the regularization as a
            prior, and with the logarithm of `prior` and of the anchors' prior, over the rows.
        n_reseeded_: how often a component had to be started anew, streaming included.
        disagreement_: after a fit with `max_candidates` the share of rows whose best candidate is not the best of all
            components, from about 2000 random rows; None after an exact fit. Where it is large, C is too small, or
            there are no distinct clusters.

    Examples:
        >>> mixture = StudentTMixture(n_components=3, n_features=2, generator=0).fit(torch.randn(500, 2))
        >>> mixture.predict(torch.randn(5, 2)).shape
        torch.Size([5])
    """

    reg_covar: float | Literal["auto"]
    init: str | Tensor
    n_init: int
    max_iter: int
    tol: float
    anchor_rows: float
    prior: Prior | None
    scale_update: Literal["px", "classic"]
    step_size: StepSize
    max_candidates: int | None
    generator: torch.Generator | int | None
    n_iter_: int
    converged_: bool
    history_: list[float]
    n_reseeded_: int
    disagreement_: float | None

    def __init__(
        self,
        n_components: int,
        n_features: int,
        *,
        dof: float | Tensor | list[float] = 4.0,
        learn_dof: Literal[False, "shared", "component"] = False,
        covariance_type: CovarianceType = "diag",
        rank: int | None = None,
        reg_covar: float | Literal["auto"] = "auto",
        init: Init | Tensor | np.ndarray = "kmeans",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-4,
        component_labels: Tensor | list[int] | None = None,
        anchor_rows: float = 0.0,
        prior: Prior | None = None,
        frozen: str | Iterable[str] | Mapping[str, Any] | None = None,
        background: bool = False,
        allow_missing: bool = False,
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
        K = validation.positive_integer(n_components, "n_components")
        d = validation.positive_integer(n_features, "n_features")
        structure = STRUCTURES[validation.one_of(covariance_type, tuple(STRUCTURES), "covariance_type")]
        rank = validation.rank(rank, structure, d)
        learn_dof = validation.one_of(learn_dof, (False, "shared", "component"), "learn_dof")
        dof_bounds = validation.bounds(dof_bounds, "dof_bounds")
        nu = validation.dof(dof, K, learn_dof, dof_bounds)
        dtype = validation.floating(dtype or torch.get_default_dtype())
        means = torch.zeros(K, d, device=device)
        scale = structure.diagonal(exact(means.new_ones(K, d)), rank or 0)
        unfitted = initialization.uniform(means, scale, nu)
        super().__init__(
            unfitted,
            dtype,
            rank=rank,
            learn_dof=learn_dof,
            component_labels=validation.component_labels(component_labels, K, background=background),
            frozen=frozen,
            background=validation.background(background, K, structure),
            allow_missing=allow_missing,
            chunk_size=None if chunk_size is None else validation.positive_integer(chunk_size, "chunk_size"),
            allow_tf32=allow_tf32,
            distributed=distributed,
        )

        self.dof_bounds = dof_bounds
        self.reg_covar = validation.regularization(reg_covar)
        self.init = validation.init(init, tuple(initialization.CENTRES), K - background, d)
        self.n_init = validation.positive_integer(n_init, "n_init")
        self.max_iter = validation.whole_number(max_iter, "max_iter")
        self.tol = validation.not_negative(tol, "tol")
        self.anchor_rows = validation.not_negative(anchor_rows, "anchor_rows")
        self.prior = validation.prior(prior, d)
        self.scale_update = validation.one_of(scale_update, ("px", "classic"), "scale_update")
        self.step_size = validation.step_size(step_size)
        self.warm_start = warm_start
        self.max_candidates = validation.at_most(max_candidates, K, "max_candidates")
        self.generator = validation.generator(generator)
        self.verbose = verbose

    # ---------------------------------------------------------------- learning

    def fit(
        self,
        data: Data,
        sample_weight: Tensor | np.ndarray | None = None,
        *,
        labels: Tensor | np.ndarray | None = None,
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
                and in the same order if `sample_weight`, `labels`, `responsibilities` or `max_candidates` are given.
            sample_weight: (N,) weights, not negative. An integer weight counts as that many repeated rows.
            labels: (N,) known classes, −1 where unknown; or a mask (N, K) of the components that a row may belong to.
                They hold in every E-step: such a row is shared by the components of its class alone, and log p(x, y)
                takes the place of log p(x). With every row labelled the fit is the supervised estimate, with none it is
                that without labels.
            responsibilities: labels (N,) or responsibilities (N, K) to start from instead of `init`, and only that.

        Returns:
            The module itself.

        Raises:
            ValueError: the data has the wrong shape, NaN or infinite values, or fewer rows than components; or labels
                do not fit.
            RuntimeError: another process failed, and the message says which and why; or one stopped answering.
        """
        generator = sampling.as_generator(self.generator)
        fits: list[fitting.Fit] = []
        with each_once(), self.exact_arithmetic():
            with self.together():
                chunks = self._chunks_to_fit(data, sample_weight, labels)
                given = None if responsibilities is None else self.chunks(data, sample_weight, responsibilities)
                sample = initialization.rows_to_start_from(
                    chunks, self.n_components, self.means.dtype, generator, shared=self.distributed
                )
                spread = sampling.spread(sample)
                known = KnownRows.of(chunks, shared=self.has_company)
                rules = self._rules(spread, known)
                is_given = given or isinstance(self.init, Tensor) or self._goes_on
                try:
                    for _ in range(1 if is_given else self.n_init):
                        fits.append(fitting.Fit())
                        fitting.run(
                            fits[-1],
                            chunks,
                            self._start(sample, given, rules, spread, generator, known),
                            rules,
                            dtype=fitting.working_dtype(self.means.dtype, chunks, self.n_components),
                            max_iter=self.max_iter,
                            tol=self.tol,
                            max_candidates=self.max_candidates,
                            generator=generator,
                            verbose=self.verbose,
                        )
                        fits = [fitting.best(fits)]
                except KeyboardInterrupt:
                    if any(fit.has_begun for fit in fits) and not self.has_company:
                        self.conclude(fitting.best(fits), rules, chunks.weight_unit)
                    raise
            self.conclude(fits[0], rules, chunks.weight_unit)
            diagnostics.warn_about(fits[0], rules, self.means.dtype, tol=self.tol, max_iter=self.max_iter)
        return self

    def fit_predict(self, data: Data, sample_weight: Tensor | np.ndarray | None = None) -> Tensor:
        """`fit`, then `predict`: labels (N,)."""
        return self.fit(data, sample_weight).predict(data)

    def partial_fit(
        self,
        batch: Tensor | np.ndarray,
        sample_weight: Tensor | np.ndarray | None = None,
        *,
        labels: Tensor | np.ndarray | None = None,
    ) -> Self:
        """Learn from one batch of a stream: a step of stepwise EM (Cappé & Moulines 2009).

        The running statistics become (1 − η)·running + η·batch, and an M-step follows. Without an earlier `fit`, the
        first batches are kept until they bring 10 rows per component; from K rows on the mixture is fitted to what is
        there with every call. After a `fit`, the stream goes on from its statistics; parameters that were given count
        as if fitted to 10 rows per component.

        η = `step_size(t)`, where the batch is the t-th of its size if all rows so far had come in such batches.

        Args:
            batch: (n, d), n ≥ 1.
            sample_weight: (n,), not negative. A batch whose weights are all zero changes nothing.
            labels: as for `fit`; they hold once the stream has begun.

        Returns:
            The module itself.

        Raises:
            ValueError: the batch has the wrong shape, or values that are not finite. Nothing has changed then.
            RuntimeError: another process failed, and the message says which and why; or one stopped answering.
        """
        with each_once(), self.exact_arithmetic():
            with self.together():
                chunks = self.chunks(batch, sample_weight, labels=labels)
                check_stream_weights(chunks)
                known = self._known_stream()
                update = self._begun_stream(chunks) if known is None else self._continued_stream(known, chunks)
            if update.parameters is not None:
                self.adopt(update.parameters)
            if update.state is not None:
                self.running.set(update.state)
            self.n_reseeded_ += update.n_reseeded
        return self

    # ---------------------------------------------------------------- inside

    def _chunks_to_fit(
        self, data: Data, sample_weight: Tensor | np.ndarray | None, labels: Tensor | np.ndarray | None
    ) -> Chunks:
        if self.max_candidates is None:
            return self.chunks(data, sample_weight, labels=labels)
        if self.allow_missing:
            raise ValueError("max_candidates cannot be given with allow_missing=True: the nearest means need all")
        if labels is not None:
            raise ValueError("labels cannot be given with max_candidates: a class may not be among the candidates")
        size = candidates.rows_per_chunk(self.n_components * (self.rank or 1), self.n_features)
        return self.chunks(data, sample_weight, size=size, in_order=True)

    @property
    def _goes_on(self) -> bool:
        """Whether a fit starts from the present parameters."""
        return self.is_fitted and (self.warm_start or self.frozen is not None)

    def _rules(self, spread: sampling.Spread, known: KnownRows | None = None, expected: Tensor | None = None) -> Rules:
        """How to fit data.

        Args:
            spread: where it lies.
            known: what is known of its rows.
            expected: variances (d,) of a component, if they are known.
        """
        variance = fitting.positive(spread.variance)
        if expected is None:  # that K ellipsoids fill the volume
            expected = variance / self.n_components ** (2 / self.n_features)
        credit = fitting.regularization(self.reg_covar, variance)
        rules = Rules(
            self.scale_update,
            self.learn_dof,
            self.dof_bounds,
            credit,
            variance,
            distributed=self.distributed,
            allow_missing=self.allow_missing,
        )
        rules = rules.believing(self.prior, self.n_components, exact(spread.mean), expected)
        rules = rules.holding(Frozen.of(self.frozen, self.background, self.n_components, self.means.device))
        return anchored(rules, self.init, self.anchor_rows, known, self.means)

    def _start(
        self,
        sample: sampling.Sample,
        given: Chunks | None,
        rules: Rules,
        spread: sampling.Spread,
        generator: torch.Generator | None,
        known: KnownRows | None = None,
    ) -> Parameters:
        """The parameters that EM starts from, in the dtype of statistics; see `initialization.start`."""
        dtype = accumulation_dtype(self.means.device)
        if self._goes_on:
            return self.snapshot().to(dtype)
        require_values(self.frozen, self.init, given is not None)
        variance = spread.variance.maximum(rules.regularization)  # it is zero where all rows are equal
        variances, background = variance.repeat(self.n_components, 1), None
        if self.background:
            nowhere = sampling.lonely(sample, at_most=sample.rows - self.n_components)
            enough = int(nowhere.sum()) > self.n_features
            mean, variances[-1] = sampling.spread(sample.take(nowhere) if enough else sample, clipped=False)
            background = initialization.Background(mean, nowhere)
        scale = self.structure.diagonal(variances, self.rank or 0)
        init = self.init
        if known is not None and not isinstance(init, Tensor):
            init = known.centres(sample, variance, generator)
        return initialization.start(
            init,
            sample,
            given,
            scale,
            self.initial_dof,
            rules,
            variance,
            self.means.dtype,
            generator,
            background=background,
        )

    def begin(self, sample: sampling.Sample, generator: torch.Generator | None) -> tuple[Parameters, Rules]:
        """Where EM starts that somebody else runs, on data of this sample, and by which rules."""
        spread = sampling.spread(sample)
        rules = self._rules(spread)
        return self._start(sample, None, rules, spread, generator), rules

    def conclude(self, fit: fitting.Fit, rules: Rules, weight_unit: float = 1.0) -> None:
        """Keep the outcome of a fit, whose sample weights were in this unit."""
        step = fit.step
        self.adopt(step.parameters)
        self.running.set(streaming.Stream.of_step(step, rules.regularization, self.means.dtype, weight_unit))
        self.n_iter_, self.converged_, self.history_ = step.n_iter, step.converged, fit.history
        self.n_reseeded_, self.disagreement_ = len(fit.reseeded), fit.disagreement

    def _known_stream(self) -> streaming.Stream | None:
        """The stream to go on from: none before or during its warm-up."""
        if self.running.started:
            return self.running.stream
        if self.running.waiting is not None or not self.is_fitted:
            return None
        parameters = self.snapshot().to(accumulation_dtype(self.means.device))
        within = sampling.Spread(parameters.origin(), parameters.variance_within())
        return streaming.Stream.of_parameters(parameters, self._rules(within).regularization, within.variance)

    def _continued_stream(self, known: streaming.Stream, batch: Chunks) -> streaming.Update:
        """What the rows of a batch make of a stream that is under way."""
        parameters = self.snapshot().to(accumulation_dtype(self.means.device))
        within = sampling.Spread(parameters.origin(), known.variance)
        return streaming.advance(
            known,
            parameters,
            batch,
            self._rules(within, expected=known.variance),
            self.step_size,
            fitting.working_dtype(self.means.dtype, batch, self.n_components),
            sampling.as_generator(self.generator),
            # Means that were given wait where they are for their first rows, which may come late in a sorted stream.
            restart=not isinstance(self.init, Tensor),
        )

    def _begun_stream(self, batch: Chunks) -> streaming.Update:
        """What the rows of a batch make of a stream that is not under way, with those that waited for them."""
        generator, dtype = sampling.as_generator(self.generator), self.means.dtype
        sample = streaming.waiting_with(self.running.waiting, batch, dtype, generator, shared=self.distributed)
        if sample is None or sample.rows < self.n_components:
            return streaming.Update(sample)
        unit = unit_of(sample.weight)
        sample = sample.times(1 / unit)
        complete = sampling.completed(sample, self.n_components)
        spread = sampling.spread(complete)
        rules = streaming.shrinking(self._rules(spread), self.snapshot().scale, self.n_features, spread.variance)
        start = self._start(complete, None, rules, spread, generator)
        return streaming.warm_up(sample, unit, start, rules, dtype, self.tol, generator)
