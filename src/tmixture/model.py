"""The parameters of a mixture as a module, and what can be asked of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MixtureSameFamily
from typing_extensions import Self

from tmixture import distributed as communication
from tmixture import validation
from tmixture.conditioning import conditional
from tmixture.criteria import information_criteria
from tmixture.data.chunks import Chunks, Data, assembled, fitting_chunk_size, of_any_size
from tmixture.density import Density, View
from tmixture.frozen import Frozen
from tmixture.missing import Observation, observe
from tmixture.numerics import accumulation_dtype, exact
from tmixture.parameters import Parameters
from tmixture.pathwise import moving_with
from tmixture.quantiles import MixtureOnALine
from tmixture.sampling import as_generator, draw_points
from tmixture.state import MixtureState
from tmixture.tails import tail_probability


class MixtureModel(MixtureState):
    """A mixture of Student-t distributions with given parameters, which live in buffers.

    `StudentTMixture` adds how they are estimated. What is computed is at least float32, whatever autocast and
    `torch.set_float32_matmul_precision` say.

    Args:
        unfitted: as of `MixtureState`; as are dtype, rank, component_labels, frozen, background and allow_tf32.
        learn_dof: which of the ν are free parameters.
        allow_missing: as of `StudentTMixture`; as are chunk_size and distributed.
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self,
        unfitted: Parameters,
        dtype: torch.dtype,
        *,
        rank: int | None,
        learn_dof: Literal[False, "shared", "component"],
        component_labels: list[int] | None,
        frozen: Any,
        background: bool,
        allow_missing: bool,
        chunk_size: int | None,
        allow_tf32: bool,
        distributed: bool,
    ) -> None:
        super().__init__(
            unfitted,
            dtype,
            rank=rank,
            component_labels=component_labels,
            frozen=frozen,
            background=background,
            allow_tf32=allow_tf32,
        )
        self.learn_dof = learn_dof
        self.allow_missing = allow_missing
        self.chunk_size = chunk_size
        self.distributed = distributed

    # ---------------------------------------------------------------- asking
    # Rows are a tensor (n, d), of which the answers are differentiable, or data of any size, as for `fit`.

    @of_any_size
    def forward(self, x: Tensor) -> Tensor:
        """Responsibilities r_ik = p(component k | x_i): (n, d) → (n, K), differentiable."""
        return self.log_joint(x).softmax(1)

    def responsibilities(self, x: Data) -> Tensor:
        """The same as `forward`."""
        return self(x)

    @of_any_size
    def class_probabilities(self, x: Tensor) -> Tensor:
        """p(class c | x_i): (n, d) → (n, C), the sums of the responsibilities of each class's components.

        What components of no class (−1 in `component_labels`) are responsible for is missing from the sum over c.
        """
        classes = self.classes
        responsibilities = self(x)[:, classes >= 0]
        total = responsibilities.new_zeros(len(x), int(classes.max()) + 1)
        return total.index_add(1, classes[classes >= 0], responsibilities)

    @of_any_size
    def top_responsibilities(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest responsibilities of each row, descending, and their components: both (n, k)."""
        if not 1 <= k <= self.n_components:
            raise ValueError(f"k must lie in 1 … n_components={self.n_components}, got {k}")
        joint = self.log_joint(x)
        values, components = joint.topk(k, dim=1)
        return (values - joint.logsumexp(1, keepdim=True)).exp(), components

    @of_any_size
    def log_joint(self, x: Tensor) -> Tensor:
        """Log π_k + log T(x_i; μ_k, Σ_k, ν_k): (n, d) → (n, K), differentiable."""
        with self.full_precision():
            return self._joint(self._view(x))

    @of_any_size
    def component_log_prob(self, x: Tensor) -> Tensor:
        """Log T(x_i; μ_k, Σ_k, ν_k): (n, d) → (n, K), differentiable."""
        with self.full_precision():
            return self._view(x).log_prob().to(self._result_dtype)

    @of_any_size
    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x_i) of the mixture: (n, d) → (n,), differentiable, usable as a (negative) loss."""
        return self.log_joint(x).logsumexp(1)

    @of_any_size
    def outlier_weights(self, x: Tensor) -> Tensor:
        """u_ik = (ν_k + d)/(ν_k + δ_ik): (n, d) → (n, K), differentiable.

        Near 1 for ordinary points of component k, near 0 for points far from it, exactly 1 where ν = ∞.
        """
        with self.full_precision():
            return self._view(x).outlier_weights().to(self._result_dtype)

    @of_any_size
    def mahalanobis(self, x: Tensor) -> Tensor:
        """Squared distances δ_ik = (x_i − μ_k)ᵀ Σ_k⁻¹ (x_i − μ_k): (n, d) → (n, K), differentiable.

        Σ is the scale matrix: the covariance is ν/(ν−2) times as large.
        """
        with self.full_precision():
            return self._view(x).distances.to(self._result_dtype)

    @of_any_size
    @torch.no_grad()
    def tail_probability(self, x: Tensor) -> Tensor:
        """How many rows of component k lie as far from μ_k as x_i, or further: (n, d) → (n, K), in [0, 1].

        δ/d of a component's own rows has the F(d, ν) distribution (χ²(d)/d for ν = ∞), so that its tail probabilities
        are uniform: below 0.01 lies one row in a hundred. Not differentiable, and worked out on the CPU.
        """
        with self.full_precision():
            view = self._view(x)
        return tail_probability(view.distances, self.dof, view.n_observed).to(self._result_dtype)

    @of_any_size
    def outlier_probability(self, x: Tensor) -> Tensor:
        """How likely it is that x_i belongs to the background: (n, d) → (n,), its responsibility, differentiable."""
        if not self.background:
            raise ValueError("outlier_probability needs a mixture with background=True; see also `tail_probability`")
        return self(x)[:, -1]

    @of_any_size
    def impute(self, x: Tensor) -> Tensor:
        """The rows with E[missing | observed] in the place of NaN: (n, d) → (n, d), differentiable.

        That is Σ_k r_ik·E[x_m | x_o, k], the regression on what is observed; of a mixture with `allow_missing=True`.
        """
        if not self.allow_missing:
            raise ValueError("impute needs a mixture with allow_missing=True: set the attribute, or give the argument")
        with self.full_precision():
            view = self._view(x)
            if isinstance(view, View):
                return x.to(self._result_dtype)
            completed = (self._joint(view).softmax(1)[:, :, None] * view.completed).sum(1) + view.origin
        return torch.where(view.observed, x.to(self._result_dtype), completed.to(self._result_dtype))

    @of_any_size
    def cdf(self, x: Tensor) -> Tensor:
        """P(X ≤ x_i) of a mixture of one feature: (n, 1) → (n,), differentiable in x."""
        x = validation.batch(x, 1)
        fixed = x.detach()
        below = self._line("cdf").cdf(exact(fixed)[:, 0]).to(self._result_dtype)
        return below + self.log_prob(fixed).exp() * (x - fixed)[:, 0]

    def icdf(self, p: Tensor) -> Tensor:
        """The x with P(X ≤ x) = p_i of a mixture of one feature: (n,) → (n, 1), differentiable in p."""
        p = validation.probabilities(p)
        fixed = p.detach()
        x = self._line("icdf").icdf(exact(fixed)).to(self._result_dtype)[:, None]
        return x + ((p - fixed) / self.log_prob(x).exp().detach())[:, None]

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | int | None = None) -> tuple[Tensor, Tensor]:
        """Draw n points (n, d) and the components (n,) that they come from; `generator` may be a seed."""
        self.require_fitted()
        generator = as_generator(validation.generator(generator))
        n = validation.positive_integer(n, "n")
        component = torch.multinomial(self.weights.cpu().float(), n, replacement=True, generator=generator)
        return self.sample_of(component, generator=generator), component.to(self.means.device)

    @torch.no_grad()
    def sample_of(self, component: Tensor, *, generator: torch.Generator | int | None = None) -> Tensor:
        """Draw a point from each of these components: (n,) → (n, d); `generator` may be a seed."""
        self.require_fitted()
        generator = as_generator(validation.generator(generator))
        component = validation.components(component, self.n_components).cpu()
        points = draw_points(self.snapshot().to(torch.device("cpu")), component, self._result_dtype, generator)
        return points.to(self.means.device)

    def rsample(self, n: int, *, generator: torch.Generator | int | None = None) -> Tensor:
        """Draw n points (n, d) through which gradients pass to weights, means and scales, but not to ν.

        For parameters that are trained (`train_by_gradients`): a point moves as they do, and from one component to
        another where weights change (implicit reparameterization, Figurnov et al. 2018). It takes time in d².
        """
        return moving_with(self.snapshot(), self.sample(n, generator=generator)[0])

    def marginal(self, features: Any) -> Self:
        """The mixture of some features alone, in the order given: a fitted mixture with these settings.

        A low-rank structure becomes "full" where its rank is not smaller than the number of features.

        Args:
            features: different indices in 0 … d−1, or a mask (d,).

        Raises:
            ValueError: there is no such feature, none is left, or one comes twice.
        """
        self.require_fitted()
        chosen = validation.features(features, self.n_features).to(self.means.device)
        with self.exact_arithmetic():
            parameters = self.snapshot().marginal(chosen)
        settings = {**self.settings(), "n_features": len(chosen), "covariance_type": parameters.scale.covariance_type}
        if not parameters.scale.takes_rank:
            settings["rank"] = None
        if isinstance(self.init, Tensor):
            settings["init"] = self.init[:, chosen.to(self.init.device)]
        if settings["prior"] is not None:
            settings["prior"] = settings["prior"].marginal(chosen)
        mixture = type(self)(**settings)
        mixture.adopt(parameters)
        return mixture

    def conditional(self, features: Any, values: Tensor) -> MixtureSameFamily:
        """The distribution of the other features, in their order, of rows in which these have these values.

        Its `mean` is a regression on the known features and its `variance` the spread about it (Gaussian mixture
        regression, Ghahramani & Jordan 1994, with heavy tails: `MultivariateStudentT.conditional`). Differentiable in
        the values. It holds n·K·(d − m)² numbers: ask about many rows in parts.

        Args:
            features: m different indices in 0 … d−1, or a mask (d,); not all of them.
            values: (…, m).

        Returns:
            A distribution of `torch`, of batch shape (…) and event shape (d − m,): its components are
            `MultivariateStudentT`, their weights p(component k | values).

        Raises:
            ValueError: the features or the shape of the values do not fit.
        """
        self.require_fitted()
        chosen = validation.features(features, self.n_features).to(self.means.device)
        values = validation.known_values(values, len(chosen), self.n_features)
        with self.full_precision():
            return conditional(self.snapshot(), chosen, values, self._result_dtype)

    @property
    def scales(self) -> Tensor:
        """The scale matrices Σ written out: (K, d, d)."""
        return self.snapshot().scale.dense(self.n_components, self.n_features)

    @property
    def covariances(self) -> Tensor:
        """The covariance matrices ν/(ν−2)·Σ: (K, d, d). Infinite where ν ≤ 2."""
        factors = self.variance_factors[:, None, None]
        return torch.where(factors.isinf(), factors, self.scales * factors)

    @property
    def variance_factors(self) -> Tensor:
        """ν/(ν−2), of the variances of each component over its scales: (K,). Infinite where ν ≤ 2."""
        varying = torch.where(self.dof > 2, self.dof / (self.dof - 2), float("inf"))
        return torch.where(self.dof.isinf(), 1.0, varying)

    # ---------------------------------------------------------------- asking data of any size

    @torch.no_grad()
    def predict(self, data: Data, *, outliers: float | None = None) -> Tensor:
        """The component with the largest responsibility for each row: labels (N,), int64, −1 for a background.

        Args:
            data: whatever `fit` takes, one chunk at a time.
            outliers: a probability in (0, 1) as below which rows get −1: those whose `tail_probability` in their
                component is smaller. Of the rows that the mixture expects, so many are called outliers, too.
        """
        if outliers is None:
            return self.in_chunks(lambda rows: self._labels(self.log_joint(rows)), data)
        least = validation.probability(outliers, "outliers")

        def question(rows: Tensor) -> Tensor:
            with self.full_precision():
                view = self._view(rows)
                labels = self._labels(self._joint(view))
            own = labels[:, None].clamp(min=0)
            tails = tail_probability(view.distances.gather(1, own), self.dof[own], view.n_observed)
            return torch.where(tails[:, 0] < least, -1, labels)

        return self.in_chunks(question, data)

    @torch.no_grad()
    def in_chunks(self, question: Callable[[Tensor], Any], data: Data) -> Any:
        """What a question answers about each row of data of any size, asked one chunk at a time, without gradients.

        So nothing of size (N, K) is held where fewer numbers are wanted:
        `mixture.in_chunks(lambda x: mixture.outlier_weights(x).amax(1), data)`.

        Args:
            question: rows (n, d) → a tensor (n, …), or several of them in a tuple.
            data: whatever `fit` takes; no rows are fine.

        Returns:
            The answers about all rows, in their order.
        """
        self.require_fitted()
        chunks = self.chunks(data, may_be_empty=True)
        return assembled((question(chunk.x) for chunk in chunks), chunks.n_rows)

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
        with self.together():
            self.require_fitted()
            chunks = self.chunks(data, sample_weight)
            mixtures = [(self.log_joint, self.n_free_parameters)]
            return information_criteria(mixtures, chunks, shared=self.distributed)[0]

    @property
    def n_free_parameters(self) -> int:
        """p, the number of free parameters, for information criteria. What is frozen is not free."""
        K, d = self.n_components, self.n_features
        frozen = Frozen.of(self.frozen, self.background, K, self.means.device)
        weights, means, scales, dof = (K,) * 4 if frozen is None else frozen.n_free
        tails = {False: 0, "shared": min(dof, 1), "component": dof}[self.learn_dof]
        return max(weights - 1, 0) + means * d + self.snapshot().scale.n_parameters(scales, d) * (scales > 0) + tails

    def chunks(
        self,
        data: Data,
        sample_weight: Tensor | np.ndarray | None = None,
        responsibilities: Tensor | np.ndarray | None = None,
        labels: Tensor | np.ndarray | None = None,
        *,
        size: int | None = None,
        in_order: bool = False,
        may_be_empty: bool = False,
    ) -> Chunks:
        """Data as this mixture works on it: in chunks of finite rows on its device; see `Chunks`."""
        width, device = self.n_components * (self.rank or 1), self.means.device
        matrices = self.covariance_type == "full"
        return Chunks(
            data,
            self.n_features,
            device,
            self.chunk_size or size or fitting_chunk_size(width, self.n_features, device, matrices=matrices),
            sample_weight=sample_weight,
            responsibilities=responsibilities,
            labels=labels,
            component_labels=self.classes.cpu(),
            n_components=self.n_components,
            in_order=in_order,
            shared=self.has_company,
            may_be_empty=may_be_empty or self.has_company,
            allow_missing=self.allow_missing,
        )

    @property
    def has_company(self) -> bool:
        """Whether other processes bring rows, too."""
        return self.distributed and communication.is_active()

    def together(self) -> AbstractContextManager[None]:
        """A block that ends in the same way in all processes that this mixture lives in."""
        return communication.together(self.means.device, enabled=self.distributed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        """The settings that matter for reading a printed network."""
        low, high = float(self.dof.min()), float(self.dof.max())
        dof = f"{low:g}" if low == high else f"{low:g} … {high:g}"
        learned = f", learn_dof={self.learn_dof!r}" if self.learn_dof else ""
        rank = f", rank={self.rank}" if self.rank else ""
        state = "" if self.is_fitted else ", not fitted"
        return (
            f"n_components={self.n_components}, n_features={self.n_features}, "
            f"covariance_type={self.covariance_type!r}{rank}, dof={dof}{learned}{state}"
        )

    # ---------------------------------------------------------------- inside

    @property
    def _result_dtype(self) -> torch.dtype:
        return torch.promote_types(self.means.dtype, torch.float32)

    def _line(self, question: str) -> MixtureOnALine:
        self.require_fitted()
        if self.n_features != 1:
            raise ValueError(f"{question} is for mixtures of one feature, but n_features={self.n_features}")
        parts = (self.weights, self.means[:, 0], self.scales[:, 0, 0].sqrt(), self.dof)
        return MixtureOnALine(*(exact(part.detach()) for part in parts))

    def _labels(self, joint: Tensor) -> Tensor:
        """The best component of each row (n, K), or −1 if it is a background."""
        labels = joint.argmax(1)
        return torch.where(labels == self.n_components - 1, -1, labels) if self.background else labels

    def _joint(self, view: View | Observation) -> Tensor:
        return (view.log_weights + view.log_prob()).to(self._result_dtype)

    def _view(self, x: Tensor) -> View | Observation:
        """What rows (n, d) say under the components."""
        self.require_fitted()
        x = validation.batch(x, self.n_features)
        density = self._latest()
        assert density is not None
        if torch.compiler.is_compiling() or any(tensor.requires_grad for tensor in self._sources()):
            density = Density(self.snapshot(), density.dtype)  # within the graph
        if self.allow_missing and bool(x.isnan().any()):
            return observe(Density(self.snapshot(), accumulation_dtype(x.device)), x)
        return View(density, density.mahalanobis(density.features(x)).contiguous())
