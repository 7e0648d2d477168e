"""Low-rank plus diagonal scale matrices: a mixture of t-factor analyzers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.data.chunks import CACHED_ELEMENTS
from tmixture.numerics import exact
from tmixture.scales.base import Distances, Moments, Scale, Shares
from tmixture.scales.diag import DiagonalScale
from tmixture.scales.full import FullScale
from tmixture.scales.pairs import TILE_ROWS, pairs_of, rows_at, tiles

# Share of the variance that the loadings of `diagonal` explain: enough for the first M-steps to turn them.
START_COMMUNALITY = 0.1
# The factors leave a feature at least this share of its variance. Where they explain one wholly (a Heywood case), its
# noise would fall to zero without an end.
LEAST_NOISE = 1e-9


@dataclass(frozen=True)
class LowRankScale(Scale):
    """Σ_k = Λ_kΛ_kᵀ + Ψ_k with loadings Λ_k (d, q) and a diagonal Ψ_k; no d×d matrix is ever formed but by `dense`.

    Given its component, a point is x = μ + Λf + e with latent factors f | U ~ N(0, I/U) and noise e | U ~ N(0, Ψ/U),
    U the latent precision of the t: a factor analyzer (Ghahramani & Hinton 1996) with t-distributed factors and noise
    (McLachlan, Bean & Ben-Tovim Jones 2007). With G = I + ΛᵀΨ⁻¹Λ (q, q) and β = G⁻¹ΛᵀΨ⁻¹, Woodbury's identity and the
    matrix determinant lemma give

        δ = (x−μ)ᵀΨ⁻¹(x−μ) − ‖G^(−1/2)ΛᵀΨ⁻¹(x−μ)‖²,   log|Σ| = log|Ψ| + log|G|,

    and f | x, U ~ N(β(x−μ), G⁻¹/U). Beside those of x, the sufficient statistics of the complete data are therefore
    Σ r·u·x·fᵀ, Σ r·u·f and Σ r·(u·f·fᵀ + G⁻¹), with f = β(x−μ) under the parameters of the E-step. They are sums over
    rows, to be added, moved, and blended with those of other parameters, as stepwise EM asks.

    The M-step is that of the model expanded by a mean and a covariance of the factors, f | U ~ N(γ, R/U), beside the α
    of U (PX-EM, Liu, Rubin & Wu 1998). About the new means, F = Σ r(u·f·fᵀ + G⁻¹) centred at γ = Σ r·u·f / Σ r·u and
    X = Σ r·u·x·fᵀ regress x on f, and R = F/Σr is absorbed into the loadings:

        μ = Σ r·u·x / Σ r·u,   Λ = X·F^(−1/2) / √(α·Σr),   Ψ = diag(S − X·F⁻¹·Xᵀ) / (α·Σr).

    Q cannot fall, but need not be at its maximum: each iteration turns the loadings towards the leading directions of
    the scatter, as a power iteration does. diag(Σ) is diag(S)/(α·Σr) at once. Λ = 0 is stationary, and no start.
    """

    whitening: Tensor
    """(K, d): reciprocal standard deviations of the noise, Ψ = diag(1/whitening²)."""

    loadings: Tensor
    """(K, d, q): Λ."""

    covariance_type: ClassVar[str] = "lowrank"
    constraints: ClassVar[dict[str, Constraint]] = {
        "whitening": constraints.positive,
        "loadings": constraints.real,
    }
    takes_rank: ClassVar[bool] = True
    expands_squares: ClassVar[bool] = True
    maximises: ClassVar[bool] = False

    @property
    def noise(self) -> DiagonalScale:
        """Ψ."""
        return DiagonalScale(self.whitening)

    def _whitened_loadings(self) -> tuple[Tensor, Tensor]:
        """Ψ^(−1/2)Λ (K, d, q) and the Cholesky factor of G (K, q, q), in float64 where the device has it."""
        whitened = exact(self.whitening)[:, :, None] * exact(self.loadings)
        identity = torch.eye(whitened.shape[2], dtype=whitened.dtype, device=whitened.device)
        return whitened, torch.linalg.cholesky(identity + whitened.mT @ whitened)

    def _explaining(self) -> Tensor:
        """G^(−1/2)ΛᵀΨ⁻¹ (K, q, d), in float64 where the device has it."""
        whitened, factor = self._whitened_loadings()
        return torch.linalg.solve_triangular(factor, whitened.mT, upper=False) * exact(self.whitening)[:, None]

    @cached_property
    def _posterior(self) -> tuple[Tensor, Tensor]:
        """Of the factors given x and U = 1: β (K, q, d) and the covariance G⁻¹ (K, q, q)."""
        whitened, factor = self._whitened_loadings()
        covariance = torch.cholesky_inverse(factor)
        return covariance @ whitened.mT * exact(self.whitening)[:, None, :], covariance

    @staticmethod
    def width(n_features: int) -> int:
        return DiagonalScale.width(n_features)

    @staticmethod
    def further_features(x: Tensor, out: Tensor | None = None) -> Tensor:
        return DiagonalScale.further_features(x, out)

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        return self.distances_from(means).of(features)

    def distances_from(self, means: Tensor) -> Distances:
        return LowRankDistances(self, means)

    def precisions(self, n_features: int) -> Tensor:
        return (exact(self.whitening).square() - self._explaining().square().sum(1)).clamp(min=0)

    def cancellation(self) -> float:
        return float(self._whitened_loadings()[0].square().sum(2).mean(1).max())

    def half_log_det(self, n_features: int) -> Tensor:
        return self.noise.half_log_det(n_features) + self._whitened_loadings()[1].diagonal(dim1=1, dim2=2).log().sum(1)

    def dense(self, n_components: int, n_features: int) -> Tensor:
        return self.loadings @ self.loadings.mT + self.noise.dense(n_components, n_features)

    def marginal(self, features: Tensor, n_features: int) -> Scale:
        if self.loadings.shape[2] < len(features):
            return type(self)(self.whitening[:, features], self.loadings[:, features])
        matrices = self.dense(self._n_distinct, n_features)  # of so few features the rank says nothing
        return FullScale.from_dense(matrices).marginal(features, n_features)

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        # Ψ^½(I + BBᵀ)^½ with B = Ψ^(−½)Λ, where (I + BBᵀ)^½ = I + B(I + G^½)⁻¹Bᵀ.
        result = noise.clone()
        whitened = self.whitening[:, :, None] * self.loadings
        for k in component.unique().tolist():
            rows, b = component == k, whitened[k]
            values, vectors = torch.linalg.eigh(b.T @ b)
            turned = b @ vectors
            result[rows] += noise[rows] @ turned / (1 + (1 + values).sqrt()) @ turned.T
        return self.noise.correlate(result, component)

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """One matrix [[x², x·fᵀ], [f, f·fᵀ]] of shape (d + q, 1 + q) per component."""
        q = self.loadings.shape[2]
        return (n_components, n_features + q, 1 + q)

    def accumulate(self, moments: Moments, features: Tensor, shares: Shares) -> None:
        K, d, q = self.loadings.shape
        projection, covariance = self._posterior
        projection = projection.to(features.dtype)
        sums, squares = moments.scatter.new_zeros(K, 1 + q, d + q), moments.scatter.new_zeros(K, 1, d + q)
        rows, components, value = pairs_of(shares.weight)
        block = max(1, CACHED_ELEMENTS // (TILE_ROWS * 2 * (d + q)))
        for pairs, filled, owner in zip(*(part.split(block) for part in tiles(components, K))):
            y = features.new_empty(*pairs.shape, d + q)  # x − μ and the factors
            x = features[:, :d].index_select(0, rows[pairs].flatten()).view(*pairs.shape, d)
            torch.sub(x, rows_at(moments.means, owner)[:, None], out=y[:, :, :d])
            y[:, :, d:] = y[:, :, :d] @ projection.index_select(0, owner).mT
            share = (value[pairs] * filled)[:, None]
            weighted = torch.cat([share, share * y[:, :, d:].mT], dim=1)
            sums.index_add_(0, owner, exact(weighted @ y))
            squares.index_add_(0, owner, exact(share @ y.square_()))
        sums = sums.mT
        moments.first.add_(sums[:, :d, 0])
        sums[:, :d, 0] = squares[:, 0, :d]
        moments.scatter.add_(sums)
        rows_per_component = shares.responsibility.sum(0, dtype=moments.scatter.dtype)
        moments.scatter[:, d:, 1:] += covariance * rows_per_component[:, None, None]

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        # The factors were inferred about the means of their time, and stay what they are.
        d = delta.shape[1]
        moved = scatter.clone()
        moved[:, :d, 0] = self.noise.translate(scatter[:, :d, 0], mass, first, delta)
        moved[:, :d, 1:] += delta[:, :, None] * scatter[:, None, d:, 0]
        return moved

    def standardize(self, scatter: Tensor, mass: Tensor, first: Tensor, centred: Tensor | float = 1.0) -> Tensor:
        """The statistic of the factors R^(−½)(f − γ), which are those of the model that `estimate` returns."""
        d = first.shape[1]
        sums = scatter[:, d:, 0]
        mean = sums / (mass.clamp(min=torch.finfo(mass.dtype).tiny) / centred)[:, None]
        root = _inverse_root(scatter[:, d:, 1:] - scatter[:, d:, :1] * mean[:, None, :])
        standard = torch.zeros_like(scatter)
        standard[:, :d, 0] = scatter[:, :d, 0]
        cross = scatter[:, :d, 1:] - first[:, :, None] * mean[:, None, :]
        standard[:, :d, 1:] = cross @ root * mass.sqrt()[:, None, None]
        standard[:, d:, :1] = root @ (sums - mean * mass[:, None])[:, :, None] * mass.sqrt()[:, None, None]
        standard[:, d:, 1:] = torch.diag_embed(mass[:, None].expand_as(mean))
        return standard

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        # What is added is squares of rows whose factors are inferred under these scales.
        projection, _ = self._posterior
        squares = scatter[:, :n_features, 0] + added
        cross = scatter[:, :n_features, 1:] + added[:, :, None] * projection.mT
        mean = scatter[:, n_features:, 0] / mass[:, None]
        outer = scatter[:, n_features:, 1:] - scatter[:, n_features:, :1] * mean[:, None, :]
        outer = outer + (projection * added[:, None]) @ projection.mT
        loadings = cross @ _inverse_root(outer) / denominator.sqrt()[:, None, None]
        variance = squares / denominator[:, None]
        least = torch.maximum(added / denominator[:, None], LEAST_NOISE * variance)
        # Noise that is below this already may stay: to raise it would lower Q.
        least = torch.minimum(least, self.whitening.square().reciprocal())
        noise = torch.maximum(variance - loadings.square().sum(2), least)
        return type(self)(noise.rsqrt(), loadings)

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        of_x = torch.cat([self.variances(n_features)[:, :, None], self.loadings], dim=2)
        q = self.loadings.shape[2]
        of_f = torch.eye(q, 1 + q, dtype=of_x.dtype, device=of_x.device).roll(1, 1).expand(len(of_x), q, 1 + q)
        return weights[:, None, None] * torch.cat([of_x, of_f], dim=1)

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 1) -> Self:
        """Scales with these variances and small correlations, which leave the saddle of the M-step at Λ = 0."""
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(variance.shape[1], rank, generator=generator, dtype=torch.float64).to(variance)
        directions = torch.nn.functional.normalize(directions, dim=1) * START_COMMUNALITY**0.5
        return cls(((1 - START_COMMUNALITY) * variance).rsqrt(), variance.sqrt()[:, :, None] * directions)

    @classmethod
    def from_dense(cls, matrices: Tensor, rank: int = 1) -> Self:
        """Maximum-likelihood factor analysis of each matrix."""
        pairs = [_factor_analysis(matrix.double().cpu(), rank) for matrix in matrices]
        noise, loadings = (torch.stack(part).to(matrices) for part in zip(*pairs))
        return cls(noise.rsqrt(), loadings)

    def n_parameters(self, n_components: int, n_features: int) -> int:
        # A rotation of the factors changes nothing: q(q−1)/2 of the loadings are not free.
        q = self.loadings.shape[2]
        return n_components * (n_features + n_features * q - q * (q - 1) // 2)

    def variances(self, n_features: int) -> Tensor:
        return self.whitening.square().reciprocal() + self.loadings.square().sum(2)


class LowRankDistances(Distances):
    """Distances whose matrices are prepared."""

    of_noise: Distances
    explaining: Tensor
    offsets: Tensor

    def __init__(self, scale: LowRankScale, means: Tensor) -> None:
        super().__init__(scale, means)
        self.of_noise = scale.noise.distances_from(means)
        explaining = scale._explaining().to(means.dtype).transpose(0, 1)  # (q, K, d)
        self.explaining, self.offsets = explaining.flatten(0, 1), (explaining * means).sum(2).flatten()

    def of(self, features: Tensor) -> Tensor:
        K, d = self.means.shape
        explained = torch.addmm(self.offsets[:, None], self.explaining, features[:, :d].T, beta=-1)
        explained = explained.square().unflatten(0, (-1, K)).sum(0)
        return (self.of_noise.of(features) - explained.T).clamp_(min=0)


def _factor_analysis(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Ψ (d,) and Λ (d, q) of a covariance matrix (d, d) by maximum likelihood, over log Ψ (Jöreskog 1967).

    Given Ψ, Λ follows from the leading eigenvalues θ of Ψ^(−½)SΨ^(−½), and the likelihood from the others: it is
    −½ Σ (θ − log θ − 1) but for a constant, and its gradient in log Ψ is −½ diag(ΛΛᵀ + Ψ − S)/Ψ.
    """
    variance = matrix.diagonal()

    def loadings(noise: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix / (noise.sqrt()[:, None] * noise.sqrt()))
        leading = vectors[:, -rank:] * (values[-rank:] - 1).clamp(min=0).sqrt()
        return values[:-rank].clamp(min=torch.finfo(values.dtype).tiny), noise.sqrt()[:, None] * leading

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        noise = torch.from_numpy(logs).exp()
        rest, factors = loadings(noise)
        slope = (factors.square().sum(1) + noise - variance) / noise
        return float((rest - rest.log() - 1).sum()) / 2, slope.numpy() / 2

    start = torch.linalg.inv(matrix).diagonal().reciprocal().maximum(LEAST_NOISE * variance).log()
    bounds = np.stack([(LEAST_NOISE * variance).log().numpy(), variance.log().numpy()], axis=1)
    found = minimize(
        loss,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    noise = torch.from_numpy(found.x).exp()
    return noise, loadings(noise)[1]


def _inverse_root(matrices: Tensor) -> Tensor:
    """A^(−½) of symmetric matrices (K, q, q), with eigenvalues of rounding size taken for no less than that."""
    values, vectors = torch.linalg.eigh(matrices)
    limits = torch.finfo(values.dtype)
    least = (values[:, -1:] * limits.eps).clamp(min=limits.tiny)
    return vectors * values.clamp(min=least).rsqrt()[:, None, :] @ vectors.mT
