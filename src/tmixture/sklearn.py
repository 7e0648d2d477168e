"""The mixture as a scikit-learn estimator, for pipelines, grid searches and code written for `GaussianMixture`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from typing_extensions import Self

from tmixture import diagnostics, notices, validation
from tmixture.data.arrays import as_tensor
from tmixture.data.chunks import chunk_size
from tmixture.mixture import StudentTMixture
from tmixture.priors import Prior
from tmixture.scales import Scale
from tmixture.settings import CovarianceType, Init

FLOATS = [np.float64, np.float32]
# Settings that `StudentTMixture` does not share.
OWN = ("random_state", "weights_init", "precisions_init")


class StudentTMixtureClusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """`StudentTMixture` behind scikit-learn's conventions: arrays in, arrays out, settings checked in `fit`.

    Like `sklearn.mixture.GaussianMixture` it is a density estimator that can cluster, with one component by default.

    Args:
        n_components: K.
        dof: degrees of freedom ν > 0: a number, `float("inf")`, or one per component; the start if they are learned.
        learn_dof: False, or "shared" or "component" to learn one ν, or one per component.
        covariance_type: structure of the scale matrices: "full", "tied", "diag", "spherical", "lowrank", "tied_diag" or
            "tied_spherical".
        rank: q of "lowrank", Σ = ΛΛᵀ + Ψ with Λ (d, q) and a diagonal Ψ.
        reg_covar: added to the scale diagonals: an absolute number in squared units of the data, or "auto" for 1e-6 of
            the variance of each feature; see `StudentTMixture`.
        init: "kmeans", "kmeans++", "random", or means (K, d) to start from.
        weights_init: weights (K,) to start from.
        precisions_init: inverse scale matrices to start from, in the shape of `scales_`.
        n_init: how many starts to try; the fit with the highest likelihood is kept.
        max_iter: upper bound of the M-steps of a fit; 0 keeps the start.
        tol: a fit has converged when at most this is left of the mean log-likelihood, in nats per row.
        prior: what is believed of all components before the data; see `Prior`.
        background: whether the last component is a background for rows that belong nowhere, whose label is −1; see
            `StudentTMixture`.
        allow_missing: whether NaN says that a value is missing; it is an error otherwise.
        scale_update: "px" (converges in a few iterations in high dimension) or "classic".
        dof_bounds: bounds of a learned ν.
        warm_start: whether `fit` starts from the parameters of the previous `fit`, but for a `dof` that was set since.
        max_candidates: C, at most K: `fit` compares each row with C promising components only; see `StudentTMixture`.
        chunk_size: rows worked on at a time; chosen from K and d if None.
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global one.
        verbose: whether `fit` shows a progress bar.
        device: where to compute, such as "cuda"; None is the CPU.

    Attributes:
        mixture_: the fitted `StudentTMixture`, with the dtype of the training data.
        weights_: (K,) π.
        means_: (K, d) μ.
        scales_: scale matrices Σ in scikit-learn's shapes: "full" (K, d, d), "tied" (d, d), "diag" (K, d), "spherical"
            (K,); "lowrank" (K, d, d), "tied_diag" (d,), "tied_spherical" ().
        covariances_: covariance matrices ν/(ν−2)·Σ in the same shapes, but for each component where ν differ;
            infinite where ν ≤ 2.
        precisions_: inverse covariance matrices; zero where ν ≤ 2.
        precisions_cholesky_: their Cholesky factors C, C·Cᵀ = precision, upper triangular; square roots of numbers.
        dof_: (K,) ν.
        labels_: (N,) components of the training data.
        n_iter_: number of M-steps.
        converged_: whether the fit converged; a `ConvergenceWarning` says so if not.
        lower_bound_: the mean log-likelihood of the training data per unit of sample weight less the penalty of the
            regularization, as in `StudentTMixture.history_`.
        lower_bounds_: the same at every step.
        n_features_in_ (int): d.
        feature_names_in_ (ndarray): names of the features, if the training data had any.

    Examples:
        >>> X = np.random.default_rng(0).normal(size=(500, 2))
        >>> StudentTMixtureClusterer(n_components=3, random_state=0).fit_predict(X).shape
        (500,)
    """

    mixture_: StudentTMixture
    labels_: np.ndarray
    n_iter_: int
    converged_: bool
    lower_bound_: float
    lower_bounds_: list[float]

    def __init__(
        self,
        n_components: int = 1,
        *,
        dof: float | list[float] = 4.0,
        learn_dof: Literal[False, "shared", "component"] = False,
        covariance_type: CovarianceType = "diag",
        rank: int | None = None,
        reg_covar: float | Literal["auto"] = "auto",
        init: Init | np.ndarray = "kmeans",
        weights_init: np.ndarray | None = None,
        precisions_init: np.ndarray | None = None,
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-4,
        prior: Prior | None = None,
        background: bool = False,
        allow_missing: bool = False,
        scale_update: Literal["px", "classic"] = "px",
        dof_bounds: tuple[float, float] = (0.5, 200.0),
        warm_start: bool = False,
        max_candidates: int | None = None,
        chunk_size: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        self.n_components = n_components
        self.dof = dof
        self.learn_dof = learn_dof
        self.covariance_type = covariance_type
        self.rank = rank
        self.reg_covar = reg_covar
        self.init = init
        self.weights_init = weights_init
        self.precisions_init = precisions_init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.prior = prior
        self.background = background
        self.allow_missing = allow_missing
        self.scale_update = scale_update
        self.dof_bounds = dof_bounds
        self.warm_start = warm_start
        self.max_candidates = max_candidates
        self.chunk_size = chunk_size
        self.random_state = random_state
        self.verbose = verbose
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Fit by EM.

        Args:
            X: (N, d).
            y: ignored; pipelines pass it.
            sample_weight: (N,), not negative. An integer weight counts as that many repeated rows.
        """
        X = validate_data(self, X, dtype=FLOATS, ensure_all_finite=self._finite)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        mixture = self._new_mixture(X)
        if self.warm_start and hasattr(self, "mixture_"):
            self._continue_from(self.mixture_, mixture)
        elif self.weights_init is not None or self.precisions_init is not None:
            self._start_from_given(mixture, X, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", diagnostics.ConvergenceWarning)  # scikit-learn's own follows below
            mixture.fit(X, weights)
        self.mixture_ = mixture
        self.n_iter_, self.converged_ = mixture.n_iter_, mixture.converged_
        self.lower_bounds_, self.lower_bound_ = mixture.history_, mixture.history_[-1]
        self.labels_ = self._apply(lambda block: mixture.predict(block), X)
        if not self.converged_ and self.max_iter > 0:
            notices.warn(
                f"EM did not converge in max_iter={self.max_iter} iterations: raise max_iter or tol", ConvergenceWarning
            )
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit`, then the labels (N,) of the same rows."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def predict(self, X: Any) -> np.ndarray:
        """The component with the largest responsibility for each row: labels (N,)."""
        return self._apply(lambda block: self.mixture_.predict(block), self._checked(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Responsibilities (N, K)."""
        return self._apply(lambda block: self.mixture_.responsibilities(block), self._checked(X))

    def outlier_weights(self, X: Any) -> np.ndarray:
        """Outlier weights u = (ν+d)/(ν+δ), (N, K): near 1 for ordinary points of a component, near 0 far from it."""
        return self._apply(lambda block: self.mixture_.outlier_weights(block), self._checked(X))

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood of each row: (N,)."""
        return self._apply(lambda block: self.mixture_.log_prob(block), self._checked(X))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean log-likelihood per unit of sample weight."""
        X = self._checked(X)
        return self.mixture_.score(X, sample_weight)

    def bic(self, X: Any) -> float:
        """The Bayesian information criterion; smaller is better."""
        X = self._checked(X)
        return self.mixture_.bic(X)

    def aic(self, X: Any) -> float:
        """Akaike's information criterion; smaller is better."""
        X = self._checked(X)
        return self.mixture_.aic(X)

    def transform(self, X: Any) -> np.ndarray:
        """Responsibilities (n, K) as features, for a pipeline; the same as `predict_proba`."""
        return self.predict_proba(X)

    @property
    def _n_features_out(self) -> int:
        """K, for `get_feature_names_out`."""
        return self.mixture_.n_components

    def impute(self, X: Any) -> np.ndarray:
        """The rows with the regression on their other values in the place of NaN; with `allow_missing=True`."""
        return self._apply(lambda block: self.mixture_.impute(block), self._checked(X))

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw points (n_samples, d) and the components (n_samples,) that they come from, using `random_state`."""
        check_is_fitted(self, "mixture_")
        x, component = self.mixture_.sample(n_samples, generator=self._seed())
        return x.cpu().numpy(), component.cpu().numpy()

    @property
    def weights_(self) -> np.ndarray:
        """Mixture weights (K,)."""
        return self._parameter("weights")

    @property
    def means_(self) -> np.ndarray:
        """Means (K, d)."""
        return self._parameter("means")

    @property
    def scales_(self) -> np.ndarray:
        """Scale matrices, in the shape of their structure."""
        check_is_fitted(self, "mixture_")
        K, d = self.mixture_.means.shape
        scale = self.mixture_.snapshot().scale
        if not self._has_matrices:
            variances = scale.tensors()["whitening"].pow(-2)
            return (variances[0] if self.mixture_.covariance_type == "tied_spherical" else variances).cpu().numpy()
        dense = scale.dense(K, d)
        return (dense if scale.per_component else dense[0]).cpu().numpy()

    @property
    def covariances_(self) -> np.ndarray:
        """Covariance matrices, in the shape of their structure."""
        scales = self.scales_
        factor = self._covariance_per_scale(scales)
        infinite = np.isinf(factor)  # zeros of a matrix are to be infinite, too, and not NaN
        return np.where(infinite, factor, scales * np.where(infinite, 1, factor))

    @property
    def precisions_(self) -> np.ndarray:
        """Inverse covariance matrices, in the shape of their structure."""
        factors = self.precisions_cholesky_
        return factors @ factors.swapaxes(-1, -2) if self._has_matrices else factors**2

    @property
    def precisions_cholesky_(self) -> np.ndarray:
        """Cholesky factors of the inverse covariance matrices, in the shape of their structure."""
        scales = self.scales_
        roots = np.linalg.inv(np.linalg.cholesky(scales)).swapaxes(-1, -2) if self._has_matrices else scales**-0.5
        return roots * self._covariance_per_scale(scales) ** -0.5

    @property
    def dof_(self) -> np.ndarray:
        """Degrees of freedom (K,)."""
        return self._parameter("dof")

    @property
    def _has_matrices(self) -> bool:
        return self.mixture_.covariance_type not in ("diag", "spherical", "tied_diag", "tied_spherical")

    def _covariance_per_scale(self, scales: np.ndarray) -> np.ndarray:
        """ν/(ν−2) of each component, or of all, in a shape that multiplies their scales."""
        factor = self.mixture_.variance_factors
        per_component = self.mixture_.structure.per_component
        if not per_component and bool((self.mixture_.dof == self.mixture_.dof[0]).all()):
            return factor[0].cpu().numpy().astype(scales.dtype)
        trailing = (1,) * (scales.ndim - per_component)
        return factor.cpu().numpy().astype(scales.dtype).reshape(*factor.shape, *trailing)

    def _new_mixture(self, X: np.ndarray) -> StudentTMixture:
        settings = {name: getattr(self, name) for name in self._get_param_names() if name not in OWN}
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        return StudentTMixture(n_features=X.shape[1], generator=self._seed(), dtype=dtype, **settings)

    def _continue_from(self, fitted: StudentTMixture, mixture: StudentTMixture) -> None:
        """Give a new mixture the parameters of a fitted one, but its own ν where that was set since."""
        for name in ("n_components", "n_features", "covariance_type", "rank", "background"):
            before, now = getattr(fitted, name), getattr(mixture, name)
            if before != now:
                raise ValueError(f"warm_start=True goes on from a fit with {name}={before!r}, but it is {now!r} now")
        parameters = fitted.snapshot()
        if not torch.equal(fitted.initial_dof, mixture.initial_dof.to(fitted.initial_dof)):
            parameters = replace(parameters, dof=mixture.initial_dof)
        mixture.adopt(parameters)

    def _start_from_given(self, mixture: StudentTMixture, X: np.ndarray, sample_weight: np.ndarray | None) -> None:
        """Start where a fit without iterations does, but with the weights and scales that are given."""
        mixture.max_iter = 0
        parameters = mixture.fit(X, sample_weight).snapshot()
        if self.weights_init is not None:
            weights = validation.weights(self.weights_init, mixture.n_components)
            parameters = replace(parameters, weights=weights.to(mixture.weights))
        if self.precisions_init is not None:
            parameters = replace(parameters, scale=self._given_scale(mixture))
        mixture.adopt(parameters)
        mixture.max_iter, mixture.warm_start = self.max_iter, True

    def _given_scale(self, mixture: StudentTMixture) -> Scale:
        """The scales that `precisions_init` is the inverse of."""
        K, d = mixture.means.shape
        kind = mixture.covariance_type
        shapes = {"tied": (d, d), "diag": (K, d), "spherical": (K,), "tied_diag": (d,), "tied_spherical": (1,)}
        shape = shapes.get(kind, (K, d, d))
        precisions = as_tensor(self.precisions_init, "precisions_init").to(mixture.means.device, torch.float64)
        if precisions.shape != shape:
            raise ValueError(
                f"precisions_init must have shape {shape} for covariance_type={kind!r}, got {tuple(precisions.shape)}"
            )
        if kind in ("diag", "spherical", "tied_diag", "tied_spherical"):
            if not ((precisions > 0) & precisions.isfinite()).all():
                raise ValueError("precisions_init must be positive and finite")
            rows = precisions.view(K if mixture.structure.per_component else 1, -1)
            return mixture.structure.diagonal(1 / rows.expand(K, d), mixture.rank or 0)
        matrices = validation.covariance_matrices(precisions.expand(K, d, d), K, d, "precisions_init")
        return mixture.structure.from_dense(matrices.inverse(), mixture.rank or 0)

    @property
    def _finite(self) -> bool | str:
        """What has to be finite, in the words of `validate_data`."""
        return "allow-nan" if self.allow_missing else True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.allow_missing
        return tags

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        return validate_data(self, X, dtype=FLOATS, reset=False, ensure_all_finite=self._finite)

    @torch.no_grad()
    def _apply(self, function: Callable[[Tensor], Tensor], X: np.ndarray) -> np.ndarray:
        """The function's values for all rows, computed a chunk at a time on the mixture's device."""
        means = self.mixture_.means
        blocks = as_tensor(X, "X").split(self.chunk_size or chunk_size(*means.shape))
        return torch.cat([function(block.to(means.device)).cpu() for block in blocks]).numpy()

    def _parameter(self, name: str) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        return getattr(self.mixture_, name).detach().cpu().numpy()
