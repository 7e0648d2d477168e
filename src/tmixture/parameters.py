"""The parameters of a mixture as one immutable value."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tmixture.distributions import log_normalizer
from tmixture.numerics import exact
from tmixture.scales import Scale


class Law(NamedTuple):
    """How densities fall with δ: log T = constant + exponent·log(1 + δ/ν) + slope·δ.

    1/ν and the exponent are zero for ν = ∞, the slope for all others. In memory a pass costs as much as all its
    arithmetic, and what is zero for all components is None. The shapes of the parts and of δ broadcast.
    """

    inverse_dof: Tensor
    most_weight: Tensor
    """(ν + d)/ν, the outlier weight at δ = 0."""
    exponent: Tensor | None
    slope: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Law:
        """The same with all parts changed."""
        return Law(
            change(self.inverse_dof),
            change(self.most_weight),
            None if self.exponent is None else change(self.exponent),
            None if self.slope is None else change(self.slope),
        )

    def logs(self, distances: Tensor) -> Tensor | None:
        """Log(1 + δ/ν), of the shape of the distances; None if all components are Gaussian."""
        return None if self.exponent is None else (distances * self.inverse_dof).log1p_()

    def log_prob(self, distances: Tensor, logs: Tensor | None, constant: Tensor) -> Tensor:
        """Log T from the distances and their `logs`."""
        # One operation after the other: those that broadcast two tensors take a CPU several times as long.
        if logs is None or self.exponent is None:
            assert self.slope is not None
            return (distances * self.slope).add_(constant)
        fallen = (logs * self.exponent).add_(constant)
        return fallen if self.slope is None else fallen.addcmul_(self.slope, distances)

    def outlier_weights(self, distances: Tensor) -> Tensor:
        """U = (ν + d)/(ν + δ), the conditional expectation of the latent precision; 1 where ν = ∞."""
        return self.most_weight / (distances * self.inverse_dof).add_(1)


class Tails(NamedTuple):
    """What ν alone makes of the densities (K,): log T = normalizer − ½·log|Σ| + what the law says."""

    dof: Tensor
    normalizer: Tensor
    half_dof: Tensor
    """ν/2, at most 1e12."""
    law: Law

    @classmethod
    def of(cls, dof: Tensor, n_features: int, like: Tails | None = None) -> Tails:
        """Those of components (K,), of which as many are Gaussian as those of another ν, if that is given."""
        nu = exact(dof)
        if like is not None:
            all_gaussian, any_gaussian = like.law.exponent is None, like.law.slope is not None
        elif torch.compiler.is_compiling():  # a graph does not look
            all_gaussian, any_gaussian = False, True
        else:
            is_gaussian = nu.isinf().tolist()
            all_gaussian, any_gaussian = all(is_gaussian), any(is_gaussian)
        exponent, slope = (nu + n_features) / -2, torch.full_like(nu, -0.5)
        if any_gaussian and not all_gaussian:
            gaussian = nu.isinf()
            exponent, slope = torch.where(gaussian, 0.0, exponent), torch.where(gaussian, slope, 0.0)
        inverse = nu.reciprocal()
        law = Law(
            inverse, 1 + n_features * inverse, None if all_gaussian else exponent, slope if any_gaussian else None
        )
        return cls(dof, log_normalizer(nu, n_features), (nu / 2).clamp(max=1e12), law)

    def take(self, components: Tensor, dof: Tensor) -> Tails:
        """Those of some components, whose ν is given."""
        law = self.law.map(lambda part: part[components])
        return Tails(dof, self.normalizer[components], self.half_dof[components], law)


@dataclass(frozen=True)
class Parameters:
    """Weights (K,), means (K, d), scales and degrees of freedom (K,) of a Student-t mixture."""

    weights: Tensor
    means: Tensor
    scale: Scale
    dof: Tensor
    known_tails: Tails | None = None
    """Those of this very ν, where they have been worked out before."""

    @property
    def n_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def digest(self) -> str:
        """What differs where any of the parameters does."""
        content = (tensor.cpu().contiguous().numpy().tobytes() for tensor in self.tensors().values())
        return hashlib.sha256(b"".join(content)).hexdigest()

    @property
    def n_features(self) -> int:
        """D."""
        return self.means.shape[1]

    @property
    def tails(self) -> Tails:
        """What the degrees of freedom contribute to the densities, in the dtype of statistics."""
        if self.known_tails is not None and self.known_tails.dof is self.dof:
            return self.known_tails
        return Tails.of(self.dof, self.n_features)

    def with_tails(self) -> Parameters:
        """The same, with what depends on ν alone worked out."""
        return replace(self, known_tails=self.tails)

    def followed_by(self, weights: Tensor, means: Tensor, scale: Scale, dof: Tensor) -> Parameters:
        """The next parameters of a fit, in which components stay Gaussian that are."""
        tails = self.tails
        return Parameters(
            weights, means, scale, dof, tails if dof is self.dof else Tails.of(dof, self.n_features, like=tails)
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, the scale structure's among them."""
        return {"weights": self.weights, "means": self.means, **self.scale.tensors(), "dof": self.dof}

    def to(self, target: torch.device | torch.dtype) -> Parameters:
        """A copy on another device or with another dtype."""
        return Parameters(self.weights.to(target), self.means.to(target), self.scale.to(target), self.dof.to(target))

    def check_range(self, dtype: torch.dtype) -> None:
        """Raise a `ValueError` if a finite number among them is not finite in a dtype."""
        for name, tensor in self.tensors().items():
            if bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any()):
                raise ValueError(
                    f"the {name} of this mixture reach {float(tensor[tensor.isfinite()].abs().max()):.3g}, more than "
                    f"dtype={dtype} holds: use dtype=torch.float32, or data in other units"
                )

    def take(self, components: Tensor) -> Parameters:
        """The parameters with the given components in the given order; the weights are not renormalised."""
        dof, tails = self.dof[components], self.known_tails
        if tails is not None and tails.dof is self.dof:
            tails = tails.take(components, dof)
        return Parameters(self.weights[components], self.means[components], self.scale.take(components), dof, tails)

    def marginal(self, features: Tensor) -> Parameters:
        """Those of the mixture of some features alone, by their indices (m,)."""
        scale = self.scale.marginal(features, self.n_features)
        return Parameters(self.weights, self.means[:, features], scale, self.dof)

    def variance_within(self) -> Tensor:
        """The variance of each feature (d,) within the components, averaged over these by their weights."""
        return (self.weights[:, None] * self.scale.variances(self.n_features)).sum(0)

    def origin(self) -> Tensor:
        """The mixture's mean Σ_k π_k μ_k (d,): the reference point of all distances and moments.

        Every quantity computed about it is independent of it but for rounding, so no gradient flows through it.
        """
        return self.means.T.mv(self.weights).detach()
