"""Triangular whitening factors of dense matrices."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

# Column blocks of a triangular factor: wide enough for fast products, narrow enough to skip most of the zero half.
BLOCK = 128


def _blocks(d: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, d)) for start in range(0, d, BLOCK)]


def whiten(x: Tensor, whitening: Tensor) -> Tensor:
    """x·Wᵀ for a lower-triangular W, skipping the zero blocks of Wᵀ: (n, d), (d, d) → (n, d)."""
    return torch.cat([x[:, :end] @ whitening[start:end, :end].T for start, end in _blocks(x.shape[1])], dim=1)


def squared_norm_of_whitened(x: Tensor, whitening: Tensor, offset: Tensor) -> Tensor:
    """‖x_i·Wᵀ − offset‖² for a lower-triangular W, block by block: (n, d), (d, d), (d,) → (n,)."""
    total = x.new_zeros(x.shape[0])
    for start, end in _blocks(x.shape[1]):
        z = torch.addmm(offset[start:end], x[:, :end], whitening[start:end, :end].T, beta=-1)
        total = total + z.square().sum(1)
    return total


def whitening_of(covariance: Tensor, name: str) -> Tensor:
    """W = L⁻¹ of covariance = L·Lᵀ: (d, d) → (d, d), lower triangular.

    A matrix that is not positive definite is repaired by a growing multiple of the identity, with a warning that calls
    it `name`.
    """
    factor, failure = torch.linalg.cholesky_ex(covariance)
    if failure.item():
        diagonal = covariance.diagonal()
        size = max(float(diagonal.abs().mean()), torch.finfo(covariance.dtype).tiny ** 0.5)
        added = size * torch.finfo(covariance.dtype).eps
        while failure.item() and added < 1e3 * size:
            added *= 10
            factor, failure = torch.linalg.cholesky_ex(covariance + torch.diag_embed(torch.full_like(diagonal, added)))
        warnings.warn(
            f"the scale matrix of {name} was not positive definite; {added:.3g} was added to its diagonal. "
            "It has too few points for its features: use more data, a larger reg_covar, fewer components or a "
            "covariance_type with fewer parameters.",
            RuntimeWarning,
            stacklevel=2,
        )
    return inverse_of(factor)


def inverse_of(factor: Tensor) -> Tensor:
    """The inverse of lower-triangular matrices (…, d, d): whitening factor to Cholesky factor and back."""
    wide = factor.to(torch.promote_types(factor.dtype, torch.float32))  # LAPACK has no half precision
    identity = torch.eye(factor.shape[-1], dtype=wide.dtype, device=factor.device)
    return torch.linalg.solve_triangular(wide, identity.expand_as(wide), upper=False).to(factor.dtype)
