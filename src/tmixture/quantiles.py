"""Distribution functions in one dimension, and their inverses: of one Student-t and of a mixture of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


def _on_host(student: Callable[..., np.ndarray], normal: Callable[..., np.ndarray], x: Tensor, dof: Tensor) -> Tensor:
    values, nu = (part.detach().cpu().double().numpy() for part in torch.broadcast_tensors(x, dof))
    gaussian = np.isinf(nu)
    answer = np.where(gaussian, normal(values), student(np.where(gaussian, 1.0, nu), values))
    return torch.from_numpy(answer).to(x)


@dataclass(frozen=True)
class MixtureOnALine:
    """A mixture of one feature: weights, means, standard deviations of the scales and ν, all (K,), in float64."""

    weights: Tensor
    loc: Tensor
    scale: Tensor
    dof: Tensor

    def cdf(self, x: Tensor) -> Tensor:
        """P(X ≤ x): (n,) → (n,)."""
        return student_cdf((x[:, None] - self.loc) / self.scale, self.dof) @ self.weights

    def icdf(self, p: Tensor) -> Tensor:
        """The x with P(X ≤ x) = p (n,): it lies between the smallest and the largest quantile of the components."""
        quantiles = self.loc + self.scale * student_icdf(p[:, None].expand(-1, len(self.loc)), self.dof)
        low, high = quantiles.amin(1), quantiles.amax(1)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2
