"""Component densities of a Student-t mixture."""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.distributions import log_normalizer
from tmixture.parameters import Parameters, accumulation_dtype

# Means further than this from the origin, in squared Mahalanobis distance per feature, lose digits in float32: of δ,
# and of the variances where squares are expanded, whose error after a few iterations is about 1e-6 at this limit.
EXPANDED_LIMIT = 4.0
DIRECT_LIMIT = 1e2
# Distances that are differences of terms this many times their size lose as much.
CANCELLATION_LIMIT = 30.0


class Density:
    """The component densities of one set of parameters, prepared for any number of chunks.

    Everything that depends on the parameters alone is computed here once, in float64; chunks are worked on in `dtype`.
    """

    def __init__(self, parameters: Parameters, dtype: torch.dtype) -> None:
        d = parameters.n_features
        # Rounded to the chunks' dtype first, so that x and the means lose exactly the same point.
        self.origin = parameters.origin().to(dtype)
        self.means = (parameters.means - self.origin).to(dtype)
        self.scale = parameters.scale.to(dtype)
        exact = accumulation_dtype(parameters.means.device)
        self.constant = (log_normalizer(parameters.dof.to(exact), d) - parameters.scale.half_log_det(d)).to(dtype)
        self.log_weights = parameters.weights.to(exact).log().to(dtype)
        self.dof = parameters.dof.to(dtype)
        self.n_features = d

    def features(self, x: Tensor) -> Tensor:
        """The rows (n, d) of a chunk as the scale structure wants them: (n, p)."""
        dtype = self.origin.dtype
        wide = torch.promote_types(x.dtype, dtype)
        return self.scale.features((x.to(wide) - self.origin.to(wide)).to(dtype))

    def mahalanobis(self, features: Tensor) -> Tensor:
        """Squared Mahalanobis distances δ (n, K), finite and not negative."""
        return self.scale.mahalanobis(features, self.means).clamp(max=torch.finfo(features.dtype).max)

    def log_prob(self, distances: Tensor) -> Tensor:
        """Log T(x_i; μ_k, Σ_k, ν_k) from the distances (n, K), Eq. 2 of the CXR-CML paper; Gaussian where ν = ∞."""
        gaussian = self.dof.isinf()
        dof = torch.where(gaussian, 1.0, self.dof)
        kernel = -(dof + self.n_features) / 2 * torch.log1p(distances / dof)
        return self.constant + torch.where(gaussian, -distances / 2, kernel)

    def outlier_weights(self, distances: Tensor) -> Tensor:
        """u_ik = (ν_k + d)/(ν_k + δ_ik), the conditional expectation of the latent precision; 1 where ν = ∞."""
        gaussian = self.dof.isinf()
        dof = torch.where(gaussian, 1.0, self.dof)
        return torch.where(gaussian, 1.0, (dof + self.n_features) / (dof + distances))


def working_dtype(parameters: Parameters, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which distances must be computed: `dtype`, at least float32, or float64 for far-apart means.

    Distances are taken about the mixture's mean. A component whose own mean lies m standard deviations away from it
    loses about m²·2⁻²⁴ of δ to cancellation where the structure expands squares, and 2m√δ·2⁻²⁴ elsewhere.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exact = accumulation_dtype(parameters.means.device)
    if dtype == exact:
        return dtype
    density = Density(parameters, exact)
    separation = density.mahalanobis(density.scale.features(torch.zeros_like(density.origin)[None])).max()
    limit = EXPANDED_LIMIT if density.scale.expands_squares else DIRECT_LIMIT
    far = separation.item() > limit * parameters.n_features
    return exact if far or density.scale.cancellation() > CANCELLATION_LIMIT else dtype
