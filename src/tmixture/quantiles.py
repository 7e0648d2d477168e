"""Distribution functions in one dimension, and their inverses: of one Student-t and of a mixture of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import special
from torch import Tensor

# Halvings of the interval that a quantile of a mixture lies in: all digits of float64.
HALVINGS = 80


def student_cdf(z: Tensor, dof: Tensor) -> Tensor:
    """P(Z ≤ z) of a standard Student-t, normal where ν = ∞; not differentiable, worked out on the CPU."""
    return _on_host(special.stdtr, special.ndtr, z, dof)


def student_icdf(p: Tensor, dof: Tensor) -> Tensor:
    """The z with P(Z ≤ z) = p; the same."""
    return _on_host(special.stdtrit, special.ndtri, p, dof)


def mixture_icdf(p: Tensor, weights: Tensor, loc: Tensor, scale: Tensor, dof: Tensor) -> Tensor:
    """The x (n,) with Σ_k π_k·F_k(x) = p: it lies between the smallest and the largest quantile of the components.

    Args:
        p: (n,), in (0, 1).
        weights: (K,), as all others; in float64.
        loc: μ.
        scale: σ.
        dof: ν.
    """
    quantiles = loc + scale * student_icdf(p[:, None].expand(-1, len(loc)), dof)
    low, high = quantiles.amin(1), quantiles.amax(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = student_cdf((middle[:, None] - loc) / scale, dof) @ weights < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _on_host(student: Callable[..., np.ndarray], normal: Callable[..., np.ndarray], x: Tensor, dof: Tensor) -> Tensor:
    values, nu = (part.detach().cpu().double().numpy() for part in torch.broadcast_tensors(x, dof))
    gaussian = np.isinf(nu)
    answer = np.where(gaussian, normal(values), student(np.where(gaussian, 1.0, nu), values))
    return torch.from_numpy(answer).to(x)
