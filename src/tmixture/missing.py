"""Rows with missing values: what the observed ones say of them, and of the others.

The observed features of a row of component k have the marginal distribution T(x_o; μ_o, Σ_oo, ν). Given them, the
missing ones have the mean μ_m + Σ_mo Σ_oo⁻¹ (x_o − μ_o), the conditional covariance Σ_mm − Σ_mo Σ_oo⁻¹ Σ_om over the
latent precision U, and E[U] = (ν + d_o)/(ν + δ_o) (Liu & Rubin 1995, "ML estimation of the t distribution using EM and
its extensions"; values are missing at random, Rubin 1976).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture.density import Density
from tmixture.distributions import log_normalizer
from tmixture.dof import expected_log_correction
from tmixture.numerics import exact


@dataclass(frozen=True)
class Observation:
    """What the observed values of n rows say under K components, in float64 where the device has it.

    Attributes:
        density: of the components.
        distances: (n, K), δ of the observed features.
        half_log_det: (n, K), ½·log|Σ_oo|.
        observed: mask (n, d).
        completed: (n, K, d), the rows with the means of what is missing, given what is not; about `origin`.
        covariances: of what is missing, by pattern: the rows, the missing features and their covariances (K, m, m); or
            where features do not correlate, the variances (K, d).
    """

    density: Density
    distances: Tensor
    half_log_det: Tensor
    observed: Tensor
    completed: Tensor
    covariances: list[tuple[Tensor, Tensor, Tensor]] | Tensor

    @property
    def log_weights(self) -> Tensor:
        """Log π (K,)."""
        return self.density.log_weights

    @property
    def dof(self) -> Tensor:
        """Ν (K,)."""
        return exact(self.density.dof)

    @property
    def origin(self) -> Tensor:
        """The point (d,) that completed rows are about."""
        return self.density.origin

    @property
    def n_observed(self) -> Tensor:
        """How many features of each row are observed: (n, 1)."""
        return self.observed.sum(1, keepdim=True).to(self.distances)

    def log_prob(self) -> Tensor:
        """Log T(x_o; μ_o, Σ_oo, ν): (n, K)."""
        gaussian, dof = self.dof.isinf(), self.dof.expand_as(self.distances)
        exponent = torch.where(gaussian, 0.0, (dof + self.n_observed) / 2)
        logs = exponent * torch.log1p(self.distances / dof)
        normalizer = log_normalizer(dof, self.n_observed)
        return normalizer - self.half_log_det - torch.where(gaussian, self.distances / 2, logs)

    def outlier_weights(self) -> Tensor:
        """U = (ν + d_o)/(ν + δ_o): (n, K), 1 where ν = ∞."""
        return (1 + self.n_observed / self.dof) / (1 + self.distances / self.dof)

    def expected_log_correction(self) -> Tensor:
        """E[log U] − log u: (n, K)."""
        return expected_log_correction(self.dof, self.n_observed)

    def covariance_roots(self, share: Tensor) -> Tensor:
        """Rows (K, d, d) whose second moments about zero are Σ_i share_ik·Cov(missing | observed); share (n, K)."""
        if isinstance(self.covariances, Tensor):
            missing = (~self.observed).to(share)
            return ((share.T @ missing) * self.covariances).sqrt().diag_embed()
        total = share.new_zeros(*self.completed.shape[1:], self.completed.shape[2])
        for rows, missing, covariance in self.covariances:
            total[:, missing[:, None], missing] += share[rows].sum(0)[:, None, None] * covariance
        values, vectors = torch.linalg.eigh(total)
        return (vectors * values.clamp(min=0).sqrt()[:, None]).mT


def observe(density: Density, x: Tensor) -> Observation:
    """What rows (n, d) say that are NaN where a value is missing; differentiable."""
    x, means, scale = exact(density.centred(x)), exact(density.means), density.scale.to(exact(density.means).dtype)
    observed = ~x.isnan()
    offsets = torch.where(observed[:, None], x[:, None] - means, 0.0)
    if not scale.correlates:
        variances = scale.variances(means.shape[1]).expand_as(means)
        distances = (offsets.square() / variances).sum(2)
        half_log_det = observed.to(x) @ variances.log().T / 2
        return Observation(density, distances, half_log_det, observed, means + offsets, variances)
    matrices = scale.dense(*means.shape)
    patterns, which = torch.unique(observed, dim=0, return_inverse=True)
    distances, half_log_det = offsets.new_zeros(offsets.shape[:2]), offsets.new_zeros(offsets.shape[:2])
    completed, covariances = means + offsets, []
    for index, pattern in enumerate(patterns):
        rows, seen, missing = (which == index).nonzero()[:, 0], pattern.nonzero()[:, 0], (~pattern).nonzero()[:, 0]
        factor = torch.linalg.cholesky(matrices[:, seen[:, None], seen])
        y = offsets[rows][:, :, seen].permute(1, 2, 0)  # (K, d_o, n)
        white = torch.linalg.solve_triangular(factor, y, upper=False)
        cross = torch.linalg.solve_triangular(factor, matrices[:, seen[:, None], missing], upper=False)
        distances = distances.index_put((rows,), white.square().sum(1).T)
        half_log_det = half_log_det.index_put((rows,), factor.diagonal(dim1=1, dim2=2).log().sum(1))
        expected = means[:, missing] + (cross.mT @ white).permute(2, 0, 1)
        components = torch.arange(len(means), device=rows.device)
        completed = completed.index_put((rows[:, None, None], components[:, None], missing), expected)
        covariances.append((rows, missing, matrices[:, missing[:, None], missing] - cross.mT @ cross))
    return Observation(density, distances, half_log_det, observed, completed, covariances)
