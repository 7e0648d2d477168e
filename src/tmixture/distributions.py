"""The multivariate Student-t as a `torch.distributions` distribution."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, MultivariateNormal, constraints, kl_divergence, register_kl

# Private, but the only way to the broadcasting rules of MultivariateNormal without an (N, K, d, d) temporary.
from torch.distributions.multivariate_normal import _batch_mahalanobis, _batch_mv, _precision_to_scale_tril
from torch.distributions.utils import lazy_property

from tmixture import validation
from tmixture.quantiles import student_cdf, student_icdf
from tmixture.special import digamma_remainder, log_gamma_remainder

__all__ = ["MultivariateStudentT", "log_normalizer"]


class MultivariateStudentT(Distribution):
    r"""Multivariate Student-t distribution with heavier tails than the normal it tends to as `df` grows.

    The density of `x` in `d` dimensions, with `δ = (x − loc)ᵀ Σ⁻¹ (x − loc)`, is that of Lange, Little & Taylor
    (1989), "Robust statistical modeling using the t distribution":

    `log T = lgamma((df+d)/2) − lgamma(df/2) − d/2·log(df·π) − ½·log|Σ| − (df+d)/2·log1p(δ/df)`

    Parameters follow `torch.distributions.MultivariateNormal`: exactly one of `scale_tril`, `scale_matrix`
    and `precision_matrix` describes Σ, and all parameters broadcast to a common batch shape. Σ is the *scale* matrix:
    the covariance is `df/(df−2)·Σ`. The constants of the density are computed in float64 whatever the dtype.

    Examples:
        >>> t = MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2))
        >>> t.log_prob(torch.zeros(2))
        tensor(-1.8379)

    Args:
        df: Degrees of freedom, positive, a number or a tensor that broadcasts against the batch shape.
            `float("inf")` is exactly the normal distribution; the gradient to an infinite `df` is 0.
        loc: Location, shape `(*batch, d)`, floating point.
        scale_tril: Lower-triangular factor of Σ with a positive diagonal, shape `(*batch, d, d)`.
        scale_matrix: Positive-definite Σ, shape `(*batch, d, d)`.
        precision_matrix: Positive-definite Σ⁻¹, shape `(*batch, d, d)`.
        validate_args: Whether to check parameters and values, as everywhere in `torch.distributions`.

    Raises:
        ValueError: If not exactly one matrix is given, or a shape, dtype or value does not fit.
    """

    df: Tensor
    loc: Tensor
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "scale_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
    }
    support: ClassVar[constraints.Constraint] = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        scale_tril: Tensor | None = None,
        *,
        scale_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1 or not loc.is_floating_point():
            raise ValueError(
                f"loc must be a floating-point tensor of shape (*batch, d), got {loc.dtype} of shape {tuple(loc.shape)}"
            )
        matrices = {"scale_tril": scale_tril, "scale_matrix": scale_matrix, "precision_matrix": precision_matrix}
        given = {name: matrix for name, matrix in matrices.items() if matrix is not None}
        if len(given) != 1:
            raise ValueError(
                "exactly one of scale_tril, scale_matrix and precision_matrix must be given, "
                f"got {' and '.join(given) or 'none of them'}"
            )
        [(name, matrix)] = given.items()
        d = loc.shape[-1]
        if matrix.shape[-2:] != (d, d):
            raise ValueError(
                f"{name} must have shape (*batch, {d}, {d}) to match loc, whose last dimension is {d}, "
                f"got {tuple(matrix.shape)}"
            )

        df = torch.as_tensor(df, dtype=loc.dtype, device=loc.device)
        batch_shape = torch.broadcast_shapes(df.shape, loc.shape[:-1], matrix.shape[:-2])
        self.df = df.expand(batch_shape)
        self.loc = loc.expand((*batch_shape, d))
        self.__dict__[name] = matrix.expand((*batch_shape, d, d))
        super().__init__(batch_shape, torch.Size((d,)), validate_args=validate_args)

        if name == "scale_tril":
            self._unbroadcasted_scale_tril = matrix
        elif name == "scale_matrix":
            self._unbroadcasted_scale_tril = torch.linalg.cholesky(matrix)
        else:
            self._unbroadcasted_scale_tril = _precision_to_scale_tril(matrix)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MultivariateStudentT:
        """Returns the same distribution with its parameters expanded (not copied) to `batch_shape`."""
        new = self._get_checked_instance(MultivariateStudentT, _instance)
        batch_shape = torch.Size(batch_shape)
        new.df = self.df.expand(batch_shape)
        new.loc = self.loc.expand(batch_shape + self.event_shape)
        new._unbroadcasted_scale_tril = self._unbroadcasted_scale_tril
        for name in ("scale_tril", "scale_matrix", "precision_matrix"):
            if name in self.__dict__:
                new.__dict__[name] = self.__dict__[name].expand(batch_shape + self.event_shape + self.event_shape)
        super(MultivariateStudentT, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def scale_tril(self) -> Tensor:
        """Lower Cholesky factor of Σ, shape `(*batch, d, d)`."""
        return self._expand_matrix(self._unbroadcasted_scale_tril)

    @lazy_property
    def scale_matrix(self) -> Tensor:
        """Σ, shape `(*batch, d, d)`; not the covariance, which is `df/(df−2)` times as large."""
        return self._expand_matrix(self._unbroadcasted_scale_tril @ self._unbroadcasted_scale_tril.mT)

    @lazy_property
    def precision_matrix(self) -> Tensor:
        """Σ⁻¹, shape `(*batch, d, d)`."""
        return self._expand_matrix(torch.cholesky_inverse(self._unbroadcasted_scale_tril))

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
        return scaled_to_covariance(self.df, self._unbroadcasted_scale_tril.square().sum(-1), event_dims=1)

    @property
    def covariance_matrix(self) -> Tensor:
        """`df/(df−2)·Σ`, shape `(*batch, d, d)`.

        Every entry is inf where `1 < df <= 2` and nan where `df <= 1`, as in `torch.distributions.StudentT`.
        """
        return scaled_to_covariance(self.df, self.scale_matrix, event_dims=2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws `loc + L·z/√u`, z standard normal and u ~ Gamma(df/2, df/2); differentiable in every parameter."""
        z = torch.randn(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        is_infinite, df = split_infinite(self.df)
        u = Gamma(df / 2, df / 2, validate_args=False).rsample(sample_shape)
        u = torch.where(is_infinite, torch.ones_like(u), u)
        return self.loc + _batch_mv(self._unbroadcasted_scale_tril, z) * u.rsqrt().unsqueeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value`, shape `(*sample, *batch, d)`, as `(*sample, *batch)`."""
        if self._validate_args:
            self._validate_sample(value)
        delta = _batch_mahalanobis(self._unbroadcasted_scale_tril, value - self.loc)
        return self._log_density_at_loc().to(self.loc.dtype) + log_kernel(delta, self.df, self.event_shape[0])

    def cdf(self, value: Tensor) -> Tensor:
        """P(X ≤ value) in one dimension, `(*sample, *batch, 1)` to `(*sample, *batch)`; differentiable in the value."""
        if self._validate_args:
            self._validate_sample(value)
        self._require_one_dimension("cdf")
        fixed = value.detach()
        z = ((fixed - self.loc) / self._unbroadcasted_scale_tril[..., 0])[..., 0]
        density = self.log_prob(fixed).exp().detach()
        return student_cdf(z, self.df) + density * (value - fixed)[..., 0]

    def icdf(self, value: Tensor) -> Tensor:
        """The x with P(X ≤ x) = value in one dimension, `(*sample, *batch)` to `(*sample, *batch, 1)`; the same."""
        self._require_one_dimension("icdf")
        fixed = value.detach()
        quantile = student_icdf(fixed, self.df)[..., None]
        x = (self.loc + self._unbroadcasted_scale_tril[..., 0] * quantile).detach()
        return x + ((value - fixed) * (-self.log_prob(x)).exp().detach())[..., None]

    def entropy(self) -> Tensor:
        """Differential entropy in nats, shape `batch`."""
        return student_entropy(self.df, self.event_shape[0], self._log_density_at_loc()).to(self.loc.dtype)

    def marginal(self, features: Any) -> MultivariateStudentT:
        """The distribution of some features alone, in the order given: with the same `df`.

        Args:
            features: different indices in 0 … d−1, or a mask (d,).

        Raises:
            ValueError: there is no such feature, none is left, or one comes twice.
        """
        chosen = self._indices(features)
        scale = self._unbroadcasted_scale_tril[..., chosen, :]
        loc = self.loc[..., chosen]
        return MultivariateStudentT(self.df, loc, scale_matrix=scale @ scale.mT, validate_args=self._validate_args)

    def conditional(self, features: Any, values: Tensor) -> MultivariateStudentT:
        r"""The distribution of the other features, in their order, where these have these values.

        With B the m features that are known, A the others, and δ the squared distance of x_B from its marginal (Ding
        2016, "On the conditional distribution of the multivariate t distribution"):

        `x_A | x_B ~ T(loc_A + Σ_AB·Σ_BB⁻¹·(x_B − loc_B), (df+δ)/(df+m)·(Σ_AA − Σ_AB·Σ_BB⁻¹·Σ_BA), df + m)`

        A surprising x_B widens it, unlike the normal's. Differentiable in values and parameters.

        Args:
            features: B, different indices in 0 … d−1, or a mask (d,); not all of them.
            values: x_B, shape `(*sample, *batch, m)`.

        Returns:
            The distribution, of batch shape `(*sample, *batch)`.

        Raises:
            ValueError: the features or the shape of the values do not fit.
        """
        given = self._indices(features)
        d, m = self.event_shape[0], len(given)
        values = validation.known_values(values, m, d)
        mask = torch.ones(d, dtype=torch.bool, device=self.loc.device)
        mask[given] = False
        others = mask.nonzero()[:, 0]

        # The Cholesky factor of Σ with the known features first: its blocks are all that the formula needs.
        rows = self._unbroadcasted_scale_tril[..., torch.cat([given, others]), :]
        factor = torch.linalg.cholesky(rows @ rows.mT)
        whitened = _product(_inverse_tril(factor[..., :m, :m]), values - self.loc[..., given])
        loc = self.loc[..., others] + _product(factor[..., m:, :m], whitened)
        is_infinite, df = split_infinite(self.df)
        spread = torch.where(is_infinite, 1.0, (df + whitened.square().sum(-1)) / (df + m))
        scale_tril = factor[..., m:, m:] * spread.sqrt()[..., None, None]
        return MultivariateStudentT(self.df + m, loc, scale_tril, validate_args=self._validate_args)

    def _require_one_dimension(self, question: str) -> None:
        if self.event_shape[0] != 1:
            raise NotImplementedError(f"{question} is for one dimension, but there are {self.event_shape[0]}")

    def _indices(self, features: Any) -> Tensor:
        return validation.features(features, self.event_shape[0]).to(self.loc.device)

    def _log_density_at_loc(self) -> Tensor:
        """The part of the log-density that no value changes, in float64."""
        half_log_det = _wide(self._unbroadcasted_scale_tril).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_normalizer(_wide(self.df), self.event_shape[0]) - half_log_det

    def _expand_matrix(self, matrix: Tensor) -> Tensor:
        return matrix.expand(self._batch_shape + self._event_shape + self._event_shape)


@register_kl(MultivariateStudentT, MultivariateStudentT)
def _kl(p: MultivariateStudentT, q: MultivariateStudentT) -> Tensor:
    """The closed form of two normals; that of others has none."""
    if not (p.df.isinf().all() and q.df.isinf().all()):
        raise NotImplementedError("the divergence of Student-t distributions has no closed form unless df is infinite")
    normals = [MultivariateNormal(t.loc, scale_tril=t.scale_tril, validate_args=False) for t in (p, q)]
    return kl_divergence(*normals)


def _inverse_tril(factor: Tensor) -> Tensor:
    """The inverses of lower-triangular matrices (…, m, m)."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrices (…, p, q) times vectors (…, q), without a copy of a matrix for every vector that shares it."""
    return torch.einsum("...ij,...j->...i", matrix, vector)


def _wide(x: Tensor) -> Tensor:
    """In float64 where the device has it: Apple's MPS has not."""
    return x if x.device.type == "mps" else x.double()


def log_kernel(delta: Tensor, df: Tensor, d: int) -> Tensor:
    """The part of the log-density that δ changes: `−(df+d)/2·log1p(δ/df)`, and its limit `−δ/2`."""
    is_infinite, df = split_infinite(df)
    return -0.5 * torch.where(is_infinite, delta, (df + d) * torch.log1p(delta / df))


def student_entropy(df: Tensor, d: int, log_density_at_loc: Tensor) -> Tensor:
    """Differential entropy in nats, in float64 where the device has it."""
    is_infinite, df = split_infinite(df)
    z, h = _wide(df) / 2, d / 2
    digamma_difference = torch.log1p(h / z) + digamma_remainder(z + h) - digamma_remainder(z)
    expected_kernel = (z + h) * digamma_difference
    return torch.where(is_infinite, d / 2, expected_kernel) - log_density_at_loc


def mean_where_it_exists(df: Tensor, loc: Tensor) -> Tensor:
    """`loc`, or nan where `df <= 1`."""
    return torch.where(df.unsqueeze(-1) > 1, loc, math.nan)


def scaled_to_covariance(df: Tensor, scales: Tensor, event_dims: int) -> Tensor:
    """Scales, with so many dimensions of an event, times `df/(df−2)`: inf where that is, and nan where `df <= 1`."""
    is_infinite, df = split_infinite(df[(...,) + (None,) * event_dims])
    undefined = torch.where(df > 1, math.inf, math.nan).to(df.dtype)
    varying = torch.where(df > 2, scales * (df / (df - 2)), undefined)
    return torch.where(is_infinite, scales, varying)


def split_infinite(df: Tensor) -> tuple[Tensor, Tensor]:
    """Where `df` is infinite, and `df` with 1 there: inf makes nan gradients even in an unused branch."""
    is_infinite = torch.isinf(df)
    return is_infinite, torch.where(is_infinite, torch.ones_like(df), df)


def log_normalizer(df: Tensor, d: int | Tensor) -> Tensor:
    """`log Γ((df+d)/2) − log Γ(df/2) − d/2·log(df·π)`, and its limit `−d/2·log(2π)` where `df` is infinite.

    Accurate to the rounding of `df`'s dtype (use float64) for every `df`: Stirling's main terms are subtracted on
    paper, because the difference of two huge log-gammas has no digits left.
    """
    is_infinite, df = split_infinite(df)
    z, h = df / 2, d / 2
    upper, lower = log_gamma_remainder(torch.stack([z + h, z])).unbind()
    gamma_ratio = (z + h - 0.5) * torch.log1p(h / z) - h + upper - lower
    return torch.where(is_infinite, 0.0, gamma_ratio) - h * math.log(2 * math.pi)
