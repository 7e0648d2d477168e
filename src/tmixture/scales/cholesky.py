"""Triangular whitening factors of dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from tmixture.notices import warn

# Column blocks of a triangular factor: wide enough for fast products, narrow enough to skip most of the zero half.
BLOCK = 128


def row_blocks(d: int) -> list[tuple[int, int]]:
    """Blocks of rows of a triangular factor, in order."""
    return [(start, min(start + BLOCK, d)) for start in range(0, d, BLOCK)]


def squared_norm_of_whitened(x: Tensor, whitening: Tensor, mean: Tensor, rows: tuple[int, int]) -> Tensor:
    """What some rows of a lower-triangular W add to ‖(x_i − mean)·Wᵀ‖²: (n, d), (d, d), (d,) → (n,)."""
    start, end = rows
    factor = whitening[start:end, :end]
    return torch.addmm(factor @ mean[:end], x[:, :end], factor.T, beta=-1).square().sum(1)


def whitenings_of(matrices: Tensor) -> Tensor:
    """W_k = L_k⁻¹ of the matrix of each component (K, d, d), repaired as by `whitening_of` where need be."""
    if torch.compiler.is_compiling():  # a graph has no room for repairs
        return inverse_of(torch.linalg.cholesky(matrices))
    factors, failures = torch.linalg.cholesky_ex(matrices)
    whitening = inverse_of(factors)
    for k in failures.nonzero()[:, 0].tolist():
        whitening[k] = whitening_of(matrices[k])
    return whitening


def whitening_of(covariance: Tensor) -> Tensor:
    """W = L⁻¹ of covariance = L·Lᵀ: (d, d) → (d, d), lower triangular.

    A matrix that is not positive definite is repaired by a growing multiple of the identity, with a warning.
    """
    factor, failure = torch.linalg.cholesky_ex(covariance)
    if failure.item():
        diagonal = covariance.diagonal()
        size = max(float(diagonal.abs().mean()), torch.finfo(covariance.dtype).tiny ** 0.5)
        added = size * torch.finfo(covariance.dtype).eps
        while failure.item() and added < 1e3 * size:
            added *= 10
            factor, failure = torch.linalg.cholesky_ex(covariance + torch.diag_embed(torch.full_like(diagonal, added)))
        warn(
            "a scale matrix was not positive definite, and its diagonal was raised until it was. It has too few "
            "points for its features: use more data, a larger reg_covar, fewer components or a covariance_type with "
            "fewer parameters."
        )
    return inverse_of(factor)


def inverse_of(factor: Tensor) -> Tensor:
    """The inverse of lower-triangular matrices (…, d, d): whitening factor to Cholesky factor and back."""
    wide = factor.to(torch.promote_types(factor.dtype, torch.float32))  # LAPACK has no half precision
    identity = torch.eye(factor.shape[-1], dtype=wide.dtype, device=factor.device)
    return torch.linalg.solve_triangular(wide, identity.expand_as(wide), upper=False).to(factor.dtype)
