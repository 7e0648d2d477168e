"""The multivariate Student-t with a low-rank or diagonal scale matrix, as a `torch.distributions` distribution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, constraints
from torch.distributions.lowrank_multivariate_normal import _batch_lowrank_logdet, _batch_lowrank_mahalanobis

from tmixture.distributions import (
    log_kernel,
    log_normalizer,
    mean_where_it_exists,
    scaled_to_covariance,
    split_infinite,
    student_entropy,
)


class LowRankMultivariateStudentT(Distribution):
    """Multivariate Student-t with the scale matrix Σ = cov_factor·cov_factorᵀ + diag(cov_diag).

    As `MultivariateStudentT`, in time and memory that grow with d·q instead of d². With q = 0, a factor of shape
    `(d, 0)`, Σ is diagonal; its features are uncorrelated but share one latent precision, unlike independent ones.

    Examples:
        >>> t = LowRankMultivariateStudentT(4.0, torch.zeros(3), torch.ones(3, 1), torch.ones(3))
        >>> t.log_prob(torch.zeros(3))
        tensor(-3.2887)

    Args:
        df: Degrees of freedom, positive, a number or a tensor that broadcasts against the batch shape; may be infinite.
        loc: Location, shape `(*batch, d)`, floating point.
        cov_factor: shape `(*batch, d, q)`.
        cov_diag: Positive, shape `(*batch, d)`.
        validate_args: Whether to check parameters and values, as everywhere in `torch.distributions`.

    Raises:
        ValueError: If a shape, dtype or value does not fit.
    """

    rank: int
    df: Tensor
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "cov_factor": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.independent(constraints.positive, 1),
    }
    support: ClassVar[constraints.Constraint] = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        cov_factor: Tensor,
        cov_diag: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1 or not loc.is_floating_point():
            raise ValueError(
                f"loc must be a floating-point tensor of shape (*batch, d), got {loc.dtype} of shape {tuple(loc.shape)}"
            )
        if validate_args is not False and not bool((cov_diag > 0).all()):
            raise ValueError(f"cov_diag must be positive, got {cov_diag.min().item()} as its least value")
        df = torch.as_tensor(df, dtype=loc.dtype, device=loc.device)
        self.rank = cov_factor.shape[-1]
        if self.rank == 0:  # which torch does not expect
            cov_factor = cov_factor.new_zeros(*cov_factor.shape[:-1], 1)
        # Its arithmetic is that of Σ: shapes, factors and products are what they are for the normal.
        self._normal = LowRankMultivariateNormal(loc, cov_factor, cov_diag, validate_args=validate_args)
        batch_shape = torch.broadcast_shapes(df.shape, self._normal.batch_shape)
        self._normal = self._normal.expand(batch_shape)
        self.df = df.expand(batch_shape)
        super().__init__(batch_shape, self._normal.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LowRankMultivariateStudentT:
        """Returns the same distribution with its parameters expanded (not copied) to `batch_shape`."""
        new = self._get_checked_instance(LowRankMultivariateStudentT, _instance)
        new.df, new._normal, new.rank = self.df.expand(batch_shape), self._normal.expand(batch_shape), self.rank
        super(LowRankMultivariateStudentT, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def loc(self) -> Tensor:
        """Location, shape `(*batch, d)`."""
        return self._normal.loc

    @property
    def cov_factor(self) -> Tensor:
        """Shape `(*batch, d, q)`."""
        return self._normal.cov_factor[..., : self.rank]

    @property
    def cov_diag(self) -> Tensor:
        """Shape `(*batch, d)`."""
        return self._normal.cov_diag

    @property
    def scale_matrix(self) -> Tensor:
        """Σ, shape `(*batch, d, d)`; not the covariance, which is `df/(df−2)` times as large."""
        return self.cov_factor @ self.cov_factor.mT + torch.diag_embed(self.cov_diag)

    @property
    def mean(self) -> Tensor:
        """`loc`, or nan where `df <= 1`: the mean does not exist there."""
        return mean_where_it_exists(self.df, self.loc)

    @property
    def mode(self) -> Tensor:
        """`loc`, whatever `df`."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Diagonal of `covariance_matrix`, shape `(*batch, d)`."""
        return scaled_to_covariance(self.df, self._normal.variance, event_dims=1)

    @property
    def covariance_matrix(self) -> Tensor:
        """`df/(df−2)·Σ`, shape `(*batch, d, d)`; inf where `1 < df <= 2` and nan where `df <= 1`."""
        return scaled_to_covariance(self.df, self.scale_matrix, event_dims=2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `loc + (x − loc)/√u` with a normal x and u ~ Gamma(df/2, df/2); differentiable in every parameter."""
        x = self._normal.rsample(sample_shape)
        is_infinite, df = split_infinite(self.df)
        u = torch.distributions.Gamma(df / 2, df / 2, validate_args=False).rsample(sample_shape)
        u = torch.where(is_infinite, torch.ones_like(u), u)
        return self.loc + (x - self.loc) * u.rsqrt().unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value`, shape `(*sample, *batch, d)`, as `(*sample, *batch)`."""
        if self._validate_args:
            self._validate_sample(value)
        normal = self._normal
        delta = _batch_lowrank_mahalanobis(
            normal._unbroadcasted_cov_factor,
            normal._unbroadcasted_cov_diag,
            value - self.loc,
            normal._capacitance_tril,
        )
        return self._log_density_at_loc().to(self.loc.dtype) + log_kernel(delta, self.df, self.event_shape[0])

    def entropy(self) -> Tensor:
        """Differential entropy in nats, shape `batch`."""
        return student_entropy(self.df, self.event_shape[0], self._log_density_at_loc()).to(self.loc.dtype)

    def _log_density_at_loc(self) -> Tensor:
        """The part of the log-density that no value changes."""
        normal = self._normal
        log_det = _batch_lowrank_logdet(
            normal._unbroadcasted_cov_factor, normal._unbroadcasted_cov_diag, normal._capacitance_tril
        )
        wide = self.df if self.df.device.type == "mps" else self.df.double()
        return log_normalizer(wide, self.event_shape[0]) - log_det / 2
