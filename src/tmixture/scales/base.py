"""The protocol behind which the scale structures live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint
from typing_extensions import Self

from tmixture.numerics import accumulation_dtype, cross_moments
from tmixture.scales.cholesky import whitenings_of
from tmixture.scales.pairs import rows_of

# Means further than this from the origin, in squared Mahalanobis distance per feature, lose digits in float32. Where
# squares are expanded, of δ and of the variances, whose error after a few iterations is about 1e-6 at this limit.
EXPANDED_LIMIT = 4.0
# Elsewhere, of δ alone, and at random: its error is that of a relative error of 2⁻²⁴ in the rows, which float32 rows
# have anyway. At d = 512 that is 1e-5 of δ at this limit, where a component is 10 000 times smaller than its distance.
DIRECT_LIMIT = 1e8
# In float64 expanded squares keep ten digits up to this limit.
FLOAT64_LIMIT = 1e6

# The structures by name, as `covariance_type` names them: each subclass of `Scale` that has a name.
STRUCTURES: dict[str, type[Scale]] = {}


@dataclass(frozen=True)
class Shares:
    """What n rows have to do with K components.

    Attributes:
        responsibility: (n, K), r_ik times the sample weight.
        weight: (n, K), r_ik·u_ik times the sample weight.
    """

    responsibility: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Moments:
    """Where the moments of a chunk are added to, and about which points they are taken.

    Attributes:
        first: (K, d), receives Σ_i weight_ik·(x_i − reference_k).
        scatter: `scatter_shape`, receives the second moments about `reference(means, apart)`.
        means: (K, d).
        apart: indices of the components treated apart, of which there are none unless the structure `separates`.
    """

    first: Tensor
    scatter: Tensor
    means: Tensor
    apart: Tensor


class Distances:
    """Squared Mahalanobis distances from means (K, d), to be taken of any number of chunks."""

    means: Tensor
    scale: Scale

    def __init__(self, scale: Scale, means: Tensor) -> None:
        self.scale, self.means = scale, means

    def of(self, features: Tensor) -> Tensor:
        """δ (n, K) of a chunk from its features (n, p)."""
        return self.scale.mahalanobis(features, self.means)

    @cached_property
    def terms(self) -> Tensor:
        """See `Scale.expanded_terms`: (K,)."""
        return self.scale.expanded_terms(self.means)


@dataclass(frozen=True)
class Scale(ABC):
    """Scale matrices Σ_1 … Σ_K of a mixture, in one structure.

    A subclass is a frozen dataclass of tensors. It knows how to measure distances with its matrices, which statistic of
    the data determines them, and how to turn that statistic into new matrices. Everything outside `tmixture.scales` is
    written against this class alone.

    What is not abstract has a textbook form here that follows from `dense` and `from_dense`: distances by Cholesky
    factors, and the full scatter Σ_i weight_ik·(x_i − μ_k)(x_i − μ_k)ᵀ as the statistic. A structure overrides what it
    can do with less.

    Points are handed over as `features(x)`, computed once per chunk and used by the E-step and the M-step alike;
    `x` and `means` are always taken about a common origin near the data, which keeps the expanded squares accurate.

    Shapes: n rows, d features, K components.
    """

    covariance_type: ClassVar[str]
    constraints: ClassVar[dict[str, Constraint]]
    """Constraint of each tensor, by field name; used when the parameters are trained by gradients."""

    correlates: ClassVar[bool] = True
    """Whether features can go together, so that less of one may be left than float32 tells from nothing."""

    takes_rank: ClassVar[bool] = False
    """Whether it has a rank to be given."""

    expands_squares: ClassVar[bool] = False
    """Whether distances are computed as ‖Wx‖² − 2·Wx·Wμ + ‖Wμ‖², which cancels for means far from the origin."""

    separates: ClassVar[bool] = False
    """Whether components too far from the origin for expanded squares can be treated apart: the E-step takes their
    distances from `mahalanobis_of_pairs` where they matter, and `accumulate` their moments about their own means."""

    per_component: ClassVar[bool] = True
    """Whether every tensor has one entry per component in its first dimension."""

    maximises: ClassVar[bool] = True
    """Whether `estimate` maximises the expected likelihood, or only raises it, to be repeated."""

    def __init_subclass__(cls) -> None:
        if "covariance_type" in vars(cls):
            STRUCTURES[cls.covariance_type] = cls

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that make up the scales, by field name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, target: torch.device | torch.dtype) -> Self:
        """The same on another device or with another dtype."""
        tensors = self.tensors()
        moved = {name: tensor.to(target) for name, tensor in tensors.items()}
        return self if all(moved[name] is tensors[name] for name in tensors) else type(self)(**moved)

    def take(self, components: Tensor) -> Self:
        """The scales of the given components (any number, repeats allowed), in that order."""
        if not self.per_component:
            return self
        return type(self)(**{name: tensor[components] for name, tensor in self.tensors().items()})

    def where(self, mask: Tensor, other: Self) -> Self:
        """These scales for the components in the mask (K,), those of `other` for the rest."""
        if not self.per_component:
            return self
        others = other.tensors()
        return type(self)(
            **{
                name: torch.where(mask.reshape(-1, *[1] * (tensor.dim() - 1)), tensor, others[name])
                for name, tensor in self.tensors().items()
            }
        )

    @classmethod
    def features(cls, x: Tensor) -> Tensor:
        """What distances and statistics need of a chunk: (…, n, d) → (…, n, p), whose first d columns are `x`."""
        return torch.cat([x, cls.further_features(x)], dim=-1) if cls.width(x.shape[-1]) > x.shape[-1] else x

    @staticmethod
    def width(n_features: int) -> int:
        """p, the number of columns of `features`."""
        return n_features

    @staticmethod
    def further_features(x: Tensor, out: Tensor | None = None) -> Tensor:
        """The columns of `features` after `x` itself, if there are any: (…, n, d) → (…, n, p − d).

        Args:
            x: (…, n, d).
            out: where to write them, if given.
        """
        raise NotImplementedError

    def mahalanobis(self, features: Tensor, means: Tensor) -> Tensor:
        """Squared distances δ_ik = (x_i − μ_k)ᵀ Σ_k⁻¹ (x_i − μ_k): (n, p), (K, d) → (n, K), never negative.

        Best as the transpose of a contiguous (K, n): what follows goes over the rows of one component after the other.
        """
        x, whitening = features[:, : means.shape[1]], self._whitening(*means.shape).to(features.dtype)
        return torch.stack([((x - mean) @ w.T).square().sum(1) for mean, w in zip(means, whitening)]).T

    def distances_from(self, means: Tensor) -> Distances:
        """`mahalanobis` from these means, with what does not depend on the features computed once."""
        return Distances(self, means)

    def expanded_terms(self, means: Tensor) -> Tensor:
        """δ (K,) of the origin from means (K, d): where squares are expanded, the size of the terms that cancel."""
        return self.mahalanobis(self.features(torch.zeros_like(means[:1])), means)[0]

    def cancellation(self) -> float:
        """What cancels in the distance of a component's own points, relative to it, at most."""
        return 0.0

    def parts(self, n_features: int) -> int:
        """Into how many parts, none of them negative, `part_of_mahalanobis` splits a distance; 1 for none."""
        return 1

    def part_of_mahalanobis(self, part: int, component: int, features: Tensor, mean: Tensor) -> Tensor:
        """One of the `parts` whose sum δ_ik is, for one component: (n, p), (d,) → (n,).

        The first ones should be cheap and large: the E-step stops at the part that shows a component to be irrelevant.
        """
        raise NotImplementedError

    def mahalanobis_of_pairs(self, features: Tensor, means: Tensor, rows: Tensor, components: Tensor) -> Tensor:
        """δ of some rows from one component each, by differences: (n, p), (K, d), (m,), (m,) → (m,)."""
        raise NotImplementedError

    @abstractmethod
    def dense(self, n_components: int, n_features: int) -> Tensor:
        """The scale matrices written out: (K, d, d)."""

    @classmethod
    @abstractmethod
    def from_dense(cls, matrices: Tensor, rank: int = 0) -> Self:
        """The scales closest in this structure, and of this rank where it has one, to full matrices (K, d, d)."""

    @abstractmethod
    def n_parameters(self, n_components: int, n_features: int) -> int:
        """Number of free parameters, for information criteria."""

    @classmethod
    def diagonal(cls, variance: Tensor, rank: int = 0) -> Self:
        """The scales closest to Σ_k = diag(variance_k), from variances (K, d); with loadings if there are any."""
        return cls.from_dense(torch.diag_embed(variance), rank)

    def half_log_det(self, n_features: int) -> Tensor:
        """½·log|Σ_k| in the dtype of statistics, broadcastable to (K,)."""
        return -self._whitening(self._n_distinct, n_features).diagonal(dim1=1, dim2=2).log().sum(1)

    def variances(self, n_features: int) -> Tensor:
        """The diagonals of Σ_k: broadcastable to (K, d)."""
        return self.dense(self._n_distinct, n_features).diagonal(dim1=1, dim2=2)

    def precisions(self, n_features: int) -> Tensor:
        """The diagonals of Σ_k⁻¹, in the dtype of statistics: broadcastable to (K, d)."""
        return self._whitening(self._n_distinct, n_features).square().sum(1)

    def marginal(self, features: Tensor, n_features: int) -> Scale:
        """The scales of some features alone, by their indices (m,): the rows and columns of Σ_k that are theirs."""
        matrices = self.dense(self._n_distinct, n_features)
        return self.from_dense(matrices[:, features[:, None], features])

    def correlate(self, noise: Tensor, component: Tensor) -> Tensor:
        """Turn white noise (n, d) into noise with scale matrix Σ_component[i] in row i."""
        factors = torch.linalg.cholesky(self.dense(self._n_distinct, noise.shape[1]))
        result = torch.empty_like(noise)
        for k in component.unique().tolist():
            rows = component == k
            result[rows] = noise[rows] @ factors[k if self.per_component else 0].T
        return result

    @property
    def _n_distinct(self) -> int:
        """How many matrices there are: K, or the one that all components share."""
        return len(next(iter(self.tensors().values()))) if self.per_component else 1

    def _whitening(self, n_matrices: int, n_features: int) -> Tensor:
        """Inverse Cholesky factors (K, d, d) of the matrices, in the dtype of statistics."""
        dtype = accumulation_dtype(next(iter(self.tensors().values())).device)
        return whitenings_of(self.to(dtype).dense(n_matrices, n_features))

    def scatter_shape(self, n_components: int, n_features: int) -> tuple[int, ...]:
        """Shape of the scatter statistic S."""
        return (n_components, n_features, n_features)

    def reference(self, means: Tensor, apart: Tensor) -> Tensor | None:
        """The points (K, d) about which `accumulate` takes its moments, None for the origin; `apart`: see `Moments`."""
        return means

    def accumulate(self, moments: Moments, features: Tensor, shares: Shares) -> None:
        """Add the first and second moments of a chunk, whose `features` are (n, p), under these scales, in place."""
        # In high dimension nearly every weight is zero: gather the rows that count, and pay N·d² instead of N·K·d².
        for k, rows in enumerate(rows_of(shares.weight.T > 0)):
            centred = features[:, : moments.means.shape[1]].index_select(0, rows) - moments.means[k]
            weighted = centred * shares.weight[rows, k, None]
            moments.first[k] += weighted.sum(0, dtype=moments.first.dtype)
            moments.scatter[k] += cross_moments(weighted, centred)

    def translate(self, scatter: Tensor, mass: Tensor, first: Tensor, delta: Tensor) -> Tensor:
        """The scatter about a new reference = old reference − delta.

        With y = x − old reference: Σ w (y+δ)(y+δ)ᵀ = S + fδᵀ + δfᵀ + Σw·δδᵀ, in the structure's own form.

        Args:
            scatter: the statistic about the old reference.
            mass: (K,), Σ_i weight_ik.
            first: (K, d), first moment about the old reference.
            delta: (K, d), old reference minus new reference.
        """
        left = torch.stack([first, delta], dim=2)
        right = torch.stack([delta, first + mass[:, None] * delta], dim=1)
        return torch.baddbmm(scatter, left, right)

    def standardize(self, scatter: Tensor, mass: Tensor, first: Tensor, centred: Tensor | float = 1.0) -> Tensor:
        """The scatter as the scales that `estimate` makes of it would have taken it.

        Only for structures with latent variables of their own, whose meaning changes with the scales.

        Args:
            scatter: the statistic about any reference.
            mass: (K,), Σ_i weight_ik.
            first: (K, d), first moment about the same reference.
            centred: whether latent variables are taken about their mean, which the means take in: 1, or 0 for the
                components (K,) whose means stay.
        """
        return scatter

    def estimate(self, scatter: Tensor, mass: Tensor, denominator: Tensor, added: Tensor, n_features: int) -> Self:
        """The M-step: Σ_k = (S_k + diag(added_k)) / denominator_k, as new scales.

        Args:
            scatter: the statistic about the new means, taken under these scales.
            mass: (K,), Σ_i weight_ik.
            denominator: (K,), what S is divided by.
            added: (K, d), to the diagonal of the scatter.
            n_features: d.
        """
        matrices = (scatter + torch.diag_embed(added)) / denominator[:, None, None]
        return type(self).from_dense(matrices)

    def expected_scatter(self, weights: Tensor, n_features: int) -> Tensor:
        """The scatter statistic from which `estimate` with denominators `weights` (K,) gives these scales."""
        return weights[:, None, None] * self.dense(len(weights), n_features)
