"""Component densities of a Student-t mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tmixture.data.chunks import chunk_size
from tmixture.dof import expected_log_correction
from tmixture.numerics import accumulation_dtype, exact
from tmixture.parameters import Law, Parameters
from tmixture.scales.base import DIRECT_LIMIT, EXPANDED_LIMIT, FLOAT64_LIMIT, Distances, Scale
from tmixture.scales.pairs import rows_at, rows_of

# The error of an expanded distance, in rounding errors of the terms that cancel in it, at most.
EXPANSION_ERROR = 16.0

# With so few features, float64 for all pairs of rows and components takes less time than to find those that need it.
FEW_FEATURES = 32

# Distances that are differences of terms this many times their size lose digits in float32.
CANCELLATION_LIMIT = 30.0


class Likelihood(NamedTuple):
    """What the components make of n rows.

    Attributes:
        distances: δ (n, K).
        logs: log(1 + δ/ν) (n, K); None if all components are Gaussian.
        joint: log π_k·T_k(x_i) (n, K).
    """

    distances: Tensor
    logs: Tensor | None
    joint: Tensor


class Density:
    """The component densities of one set of parameters, prepared for any number of chunks.

    Everything that depends on the parameters alone is computed here once, in float64; chunks are worked on in `dtype`.

    Args:
        parameters: of the mixture.
        dtype: of the arithmetic on chunks.

    Attributes:
        distances: δ as the scale structure measures it.
        joint_constant: what does not depend on δ in log π_k·T_k: (K,).
        apart: indices of the components that `relevant` and the moments treat apart: none, but for what
            `working_density` finds.
    """

    origin: Tensor
    means: Tensor
    scale: Scale
    constant: Tensor
    log_weights: Tensor
    dof: Tensor
    law: Law
    apart: Tensor
    distances: Distances
    joint_constant: Tensor

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        d = parameters.n_features
        # Rounded to the chunks' dtype first, so that x and the means lose exactly the same point.
        self.origin = parameters.origin().to(dtype)
        self.means = (parameters.means - self.origin).to(dtype)
        self.scale = parameters.scale.to(dtype)
        tails = parameters.tails
        self.constant = (tails.normalizer - parameters.scale.half_log_det(d)).to(dtype)
        self.log_weights = exact(parameters.weights).log().to(dtype)
        self.dof = parameters.dof.to(dtype)
        self.law = tails.law.map(lambda part: part.to(dtype))
        self.n_features = d
        self.apart = torch.empty(0, dtype=torch.long, device=self.means.device)
        self._room: Tensor | None = None
        self._prepare()

    def _prepare(self) -> None:
        self.distances = self.scale.distances_from(self.means)
        self.joint_constant = self.constant + self.log_weights

    @property
    def reference(self) -> Tensor:
        """The points (K, d), about the origin, about which the moments are taken."""
        reference = self.scale.reference(self.means, self.apart)
        return self.origin.new_zeros(1, 1).expand_as(self.means) if reference is None else reference

    @property
    def dtype(self) -> torch.dtype:
        """That of the arithmetic on chunks."""
        return self.origin.dtype

    def take(self, components: Tensor) -> Density:
        """The densities of the given components alone, for structures that treat none apart."""
        part = copy(self)
        part.scale = self.scale.take(components)
        for name in ("means", "constant", "log_weights", "dof"):
            setattr(part, name, getattr(self, name)[components])
        part.law = self._law_of(components)
        part.__dict__.pop("expected_log_correction", None)
        part._prepare()
        return part

    def features(self, x: Tensor) -> Tensor:
        """The rows (n, d) of a chunk as the scale structure wants them: (n, p)."""
        return self.scale.features(self.centred(x))

    def centred(self, x: Tensor) -> Tensor:
        """Rows (…, d) about the origin."""
        wide = torch.promote_types(x.dtype, self.dtype)
        return (x.to(wide) - self.origin.to(wide)).to(self.dtype)

    def features_in_turn(self, x: Tensor) -> Tensor:
        """The same as `features`, without gradients and valid until the next call, which takes the same memory.

        Fresh memory for every chunk costs a CPU as much as the arithmetic that fills it.
        """
        d, width = self.n_features, self.scale.width(self.n_features)
        if self._room is None or len(self._room) < len(x):
            self._room = self.origin.new_empty(len(x), width)
        features = self._room[: len(x)]
        torch.sub(x if x.is_floating_point() else x.to(self.dtype), self.origin, out=features[:, :d])
        if width > d:
            self.scale.further_features(features[:, :d], out=features[:, d:])
        return features

    def mahalanobis(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances δ (n, K), finite and not negative."""
        # Squares may overflow, and expanded ones cancel to NaN then; the rows themselves are finite.
        largest = torch.finfo(features.dtype).max
        return self.distances.of(features).nan_to_num_(nan=largest, posinf=largest)

    def relevant(self, features: Tensor, allowed: Tensor | None = None) -> Likelihood:
        """The likelihood where a responsibility may exceed `negligible`, elsewhere what rules it out.

        Where a component is not `allowed` (n, K), log π_k·T_k is −∞.

        In high dimension a row has few components that are responsible for it, and a part of its distance from the
        others is enough to rule them out: their density can only fall from there.
        """
        n_parts = self.scale.parts(self.n_features)
        if n_parts == 1:
            distances = self.mahalanobis(features)
            if len(self.apart):
                return self._corrected(distances, features, allowed)
            return self._likelihood(distances, allowed)
        distances = torch.stack([self.scale.part_of_mahalanobis(0, k, features, m) for k, m in enumerate(self.means)])
        best = ruled_out(self.joint(distances.T), allowed).argmax(1)
        is_best = best == torch.arange(len(self.means), device=best.device)[:, None]
        rows = rows_of(is_best)
        for part in range(1, n_parts):
            self._add_part(part, rows, distances, features)
        threshold = relevance_threshold(self.joint(distances.T).gather(1, best[:, None]))
        for part in range(1, n_parts):
            possible = (ruled_out(self.joint(distances.T), allowed) > threshold).T
            self._add_part(part, rows_of(possible & ~is_best), distances, features)
        return self._likelihood(distances.T.clamp(max=torch.finfo(features.dtype).max), allowed)

    def _likelihood(self, distances: Tensor, allowed: Tensor | None) -> Likelihood:
        logs = self.law.logs(distances)
        return Likelihood(distances, logs, ruled_out(self.law.log_prob(distances, logs, self.joint_constant), allowed))

    def _corrected(self, distances: Tensor, features: Tensor, allowed: Tensor | None) -> Likelihood:
        """`relevant` from expanded distances (n, K), by differences where components `apart` may matter."""
        error = self.expansion_error
        _, logs, joint = self._likelihood(distances + error, allowed)  # at the least
        threshold = relevance_threshold(joint.amax(1, keepdim=True))
        # At the most: the slope of log T in δ is that at δ = 0 at the steepest, half an outlier weight.
        slack = (error * self.law.most_weight)[self.apart, None]
        which, rows = (rows_at(joint.T, self.apart).add_(slack) > threshold.T).nonzero(as_tuple=True)
        components = self.apart[which]
        by_differences = self.scale.mahalanobis_of_pairs(features, self.means, rows, components)
        by_differences = by_differences.clamp_(max=torch.finfo(distances.dtype).max)
        distances[rows, components] = by_differences
        law = self._law_of(components)
        exact_logs = law.logs(by_differences)
        joint[rows, components] = law.log_prob(by_differences, exact_logs, self.joint_constant[components])
        if logs is not None and exact_logs is not None:
            logs[rows, components] = exact_logs
        return Likelihood(distances, logs, joint)

    @cached_property
    def expansion_error(self) -> Tensor:
        """How far an expanded distance (K,) from a component `apart` may be off; zero for the others."""
        error = torch.zeros_like(self.dof)
        error[self.apart] = EXPANSION_ERROR * torch.finfo(error.dtype).eps * self.distances.terms[self.apart]
        huge = torch.finfo(error.dtype).max ** 0.5
        error.nan_to_num_(nan=huge, posinf=huge)
        return error

    def _add_part(self, part: int, rows: tuple[Tensor, ...], distances: Tensor, features: Tensor) -> None:
        """Add a part of the distances from each component to those (K, n) of the given rows, in place."""
        for k, (mean, chosen) in enumerate(zip(self.means, rows)):
            if len(chosen):
                points = features if len(chosen) == len(features) else features.index_select(0, chosen)
                distances[k].index_add_(0, chosen, self.scale.part_of_mahalanobis(part, k, points, mean))

    def joint(self, distances: Tensor, components: Tensor | None = None) -> Tensor:
        """Log π_k + log T(x_i; μ_k, Σ_k, ν_k) from the distances (n, K), or from components of a shape that fits."""
        law = self._law_of(components)
        constant = self.joint_constant if components is None else self.joint_constant[components]
        return law.log_prob(distances, law.logs(distances), constant)

    def log_prob(self, distances: Tensor) -> Tensor:
        """Log T(x_i; μ_k, Σ_k, ν_k) from the distances (n, K), Eq. 2 of the CXR-CML paper; Gaussian where ν = ∞."""
        return self.law.log_prob(distances, self.law.logs(distances), self.constant)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Log p(x_i), for any number of rows: (n, d) → (n,)."""
        return torch.cat([joint.logsumexp(1) for joint in self._joints(x)])

    def best(self, x: Tensor) -> Tensor:
        """The component with the largest π_k·T(x_i; μ_k, Σ_k, ν_k), for any number of rows: (n, d) → (n,)."""
        return torch.cat([joint.contiguous().argmax(1) for joint in self._joints(x)])

    def _joints(self, x: Tensor) -> Iterator[Tensor]:
        for rows in x.split(chunk_size(len(self.means), self.n_features)):
            yield self.joint(self.mahalanobis(self.features(rows)))

    def outlier_weights(self, distances: Tensor, components: Tensor | None = None) -> Tensor:
        """u_ik = (ν_k + d)/(ν_k + δ_ik), the conditional expectation of the latent precision; 1 where ν = ∞.

        Args:
            distances: δ (n, K), or from the given components.
            components: as for `joint`.
        """
        return self._law_of(components).outlier_weights(distances)

    def _law_of(self, components: Tensor | None) -> Law:
        return self.law if components is None else self.law.map(lambda part: part[components])

    @cached_property
    def expected_log_correction(self) -> Tensor:
        """E[log U] − log u (K,), in the dtype of statistics."""
        return expected_log_correction(exact(self.dof), self.n_features)


@dataclass(frozen=True)
class View:
    """What rows of which all values are known say under the components.

    Attributes:
        density: of the components.
        distances: δ (n, K).
    """

    density: Density
    distances: Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log π (K,)."""
        return self.density.log_weights

    @property
    def n_observed(self) -> int:
        """D."""
        return self.density.n_features

    def log_prob(self) -> Tensor:
        """Log T(x_i; μ_k, Σ_k, ν_k): (n, K)."""
        return self.density.log_prob(self.distances)

    def outlier_weights(self) -> Tensor:
        """u_ik: (n, K)."""
        return self.density.outlier_weights(self.distances)


def ruled_out(joint: Tensor, allowed: Tensor | None) -> Tensor:
    """Log π_k·T_k (n, K) with −∞ for components that are not allowed."""
    return joint if allowed is None else joint.masked_fill(~allowed, -math.inf)


def negligible(dtype: torch.dtype) -> float:
    """Responsibilities below this are taken as zero."""
    return torch.finfo(dtype).eps * 1e-2


def relevance_threshold(best: Tensor) -> Tensor:
    """What log π_k·T_k must exceed for component k to matter to a row, given the largest of the row's components."""
    return best + (math.log(negligible(best.dtype)) - 1)


def working_density(parameters: Parameters, dtype: torch.dtype, *, apart: bool = False) -> Density:
    """The densities in the dtype in which distances must be computed: at least float32, or float64 for far-apart means.

    Distances are taken about the mixture's mean. A component whose own mean lies m standard deviations away from it
    loses about m²·2⁻²⁴ of δ to cancellation where the structure expands squares, and 2m√δ·2⁻²⁴ elsewhere.

    Args:
        parameters: of the mixture.
        dtype: the one to use if it is accurate enough.
        apart: whether the structure may treat some components apart from the others, as `relevant` does.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    widest = accumulation_dtype(parameters.means.device)
    apart = apart and parameters.scale.separates
    if not apart and (dtype == widest or parameters.scale.cancellation() > CANCELLATION_LIMIT):
        return Density(parameters, widest)
    density = Density(parameters, dtype)
    separation = density.distances.terms
    limit = EXPANDED_LIMIT if density.scale.expands_squares else DIRECT_LIMIT
    limit = parameters.n_features * (FLOAT64_LIMIT if dtype == torch.float64 else limit)
    # The only wait for a GPU. NaN, of numbers that overflow in this dtype, is not near either.
    if separation.max() <= limit:
        return density
    if not apart:
        return Density(parameters, widest)
    if parameters.n_features <= FEW_FEATURES and dtype != widest:
        return working_density(parameters, widest, apart=True)
    far = (~(separation <= limit)).nonzero()[:, 0]
    if not (separation[far] <= parameters.n_features * DIRECT_LIMIT).all():
        density = Density(parameters, widest)
    density.apart = far
    return density
