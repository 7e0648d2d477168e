"""The mixture as a scikit-learn estimator, for pipelines, grid searches and code written for `GaussianMixture`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from typing_extensions import Self

from tmixture import diagnostics
from tmixture.arrays import as_tensor
from tmixture.chunks import chunk_size
from tmixture.mixture import StudentTMixture

FLOATS = [np.float64, np.float32]


class StudentTMixtureClusterer(DensityMixin, BaseEstimator):
    """`StudentTMixture` behind scikit-learn's conventions: arrays in, arrays out, settings checked in `fit`.

    Like `sklearn.mixture.GaussianMixture` it is a density estimator that can cluster, with one component by default.

    Args:
        n_components: K.
        dof: degrees of freedom ν > 0: a number, `float("inf")`, or one per component; the start if they are learned.
        learn_dof: False, or "shared" or "component" to learn one ν, or one per component.
        covariance_type: structure of the scale matrices: "full", "tied", "diag", "spherical" or "lowrank".
        rank: q of "lowrank", Σ = ΛΛᵀ + Ψ with Λ (d, q) and a diagonal Ψ.
        reg_covar: added to the scale diagonals: an absolute number in squared units of the data, or "auto" for 1e-6 of
            the variance of each feature; see `StudentTMixture`.
        init: "kmeans", "kmeans++", "random", or means (K, d) to start from.
        n_init: how many starts to try; the fit with the highest likelihood is kept.
        max_iter: upper bound of the M-steps of a fit.
        tol: a fit has converged when at most this is left of the mean log-likelihood, in nats per row.
        scale_update: "px" (converges in a few iterations in high dimension) or "classic".
        dof_bounds: bounds of a learned ν.
        warm_start: whether `fit` starts from the parameters of the previous `fit`.
        max_candidates: C, at most K: `fit` compares each row with C promising components only; see `StudentTMixture`.
        chunk_size: rows worked on at a time; chosen from K and d if None.
        random_state: a seed, a `numpy.random.RandomState`, or None for NumPy's global one.
        verbose: whether `fit` shows a progress bar.
        device: where to compute, such as "cuda"; None is the CPU.

    Attributes:
        mixture_: the fitted `StudentTMixture`, with the dtype of the training data.
        weights_: (K,) π.
        means_: (K, d) μ.
        scales_: (K, d, d) scale matrices Σ, whatever the structure.
        covariances_: (K, d, d) covariance matrices ν/(ν−2)·Σ; infinite where ν ≤ 2.
        dof_: (K,) ν.
        labels_: (N,) components of the training data.
        n_iter_: number of M-steps.
        converged_: whether the fit converged; a `ConvergenceWarning` says so if not.
        lower_bound_: mean log-likelihood of the training data per unit of sample weight.
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

    def __init__(
        self,
        n_components: int = 1,
        *,
        dof: float | list[float] = 4.0,
        learn_dof: Literal[False, "shared", "component"] = False,
        covariance_type: str = "diag",
        rank: int | None = None,
        reg_covar: float | Literal["auto"] = "auto",
        init: str | np.ndarray = "kmeans",
        n_init: int = 1,
        max_iter: int = 100,
        tol: float = 1e-4,
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
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
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
        X = validate_data(self, X, dtype=FLOATS)
        mixture = self._new_mixture(X)
        if self.warm_start and hasattr(self, "mixture_"):
            mixture.load_state_dict(self.mixture_.state_dict())
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", diagnostics.ConvergenceWarning)  # scikit-learn's own follows below
            mixture.fit(X, weights)
        self.mixture_ = mixture
        self.n_iter_, self.converged_, self.lower_bound_ = mixture.n_iter_, mixture.converged_, mixture.history_[-1]
        self.labels_ = self._apply(lambda block: mixture.predict(block), X)
        if not self.converged_:
            warnings.warn(
                f"EM did not converge in max_iter={self.max_iter} iterations: raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
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

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log-likelihood of the rows."""
        return self.mixture_.score(self._checked(X))

    def bic(self, X: Any) -> float:
        """The Bayesian information criterion; smaller is better."""
        return self.mixture_.bic(self._checked(X))

    def aic(self, X: Any) -> float:
        """Akaike's information criterion; smaller is better."""
        return self.mixture_.aic(self._checked(X))

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draw points (n_samples, d) and the components (n_samples,) that they come from, using `random_state`."""
        check_is_fitted(self, "mixture_")
        generator = torch.Generator().manual_seed(self._seed())
        x, component = self.mixture_.sample(n_samples, generator=generator)
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
        """Scale matrices (K, d, d)."""
        return self._parameter("scales")

    @property
    def covariances_(self) -> np.ndarray:
        """Covariance matrices (K, d, d)."""
        return self._parameter("covariances")

    @property
    def dof_(self) -> np.ndarray:
        """Degrees of freedom (K,)."""
        return self._parameter("dof")

    def _new_mixture(self, X: np.ndarray) -> StudentTMixture:
        settings = {name: value for name, value in self.get_params(deep=False).items() if name != "random_state"}
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        return StudentTMixture(n_features=X.shape[1], generator=self._seed(), dtype=dtype, **settings)

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        return validate_data(self, X, dtype=FLOATS, reset=False)

    @torch.no_grad()
    def _apply(self, function: Callable[[Tensor], Tensor], X: np.ndarray) -> np.ndarray:
        """The function's values for all rows, computed a chunk at a time on the mixture's device."""
        means = self.mixture_.means
        blocks = as_tensor(X, "X").split(self.chunk_size or chunk_size(*means.shape))
        return torch.cat([function(block.to(means.device)).cpu() for block in blocks]).numpy()

    def _parameter(self, name: str) -> np.ndarray:
        check_is_fitted(self, "mixture_")
        return getattr(self.mixture_, name).detach().cpu().numpy()
