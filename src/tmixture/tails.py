"""How far out the rows of a component lie: δ/d has the F(d, ν) distribution, or χ²(d)/d where ν = ∞.

Of x = μ + Σ^½ z/√u with z normal and u ~ χ²(ν)/ν, δ/d = (‖z‖²/d)/u is a ratio of two mean squares (Lange, Little &
Taylor 1989).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

from tmixture.numerics import accumulation_dtype


def tail_probability(distances: Tensor, dof: Tensor, n_features: int) -> Tensor:
    """P(δ ≥ δ_ik) of rows of component k: squared distances (n, K), ν (K,) → (n, K)."""
    delta, nu = (tensor.cpu().double().numpy() for tensor in (distances, dof))
    gaussian, nu = np.isinf(nu), np.where(np.isinf(nu), 1.0, nu)
    student = special.fdtrc(n_features, nu, delta / n_features)
    return torch.from_numpy(np.where(gaussian, special.chdtrc(n_features, delta), student)).to(distances)


def distance_limits(probability: float, dof: Tensor, n_features: int) -> Tensor:
    """The squared distances (K,) beyond which this share of the rows of each component lies."""
    nu = dof.cpu().double().numpy()
    gaussian, nu = np.isinf(nu), np.where(np.isinf(nu), 1.0, nu)
    student = n_features * special.fdtri(n_features, nu, 1 - probability)
    limits = np.where(gaussian, special.chdtri(n_features, probability), student)
    return torch.from_numpy(limits).to(dof.device, accumulation_dtype(dof.device))
