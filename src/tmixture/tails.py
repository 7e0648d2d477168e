"""How far out the rows of a component lie: δ/d has the F(d, ν) distribution, or χ²(d)/d where ν = ∞.

Of x = μ + Σ^½ z/√u with z normal and u ~ χ²(ν)/ν, δ/d = (‖z‖²/d)/u is a ratio of two mean squares (Lange, Little &
Taylor 1989).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from tmixture.numerics import accumulation_dtype


def tail_probability(distances: Tensor, dof: Tensor, n_features: int) -> Tensor:
    """P(δ ≥ δ_ik) of rows of component k: squared distances (n, K), ν (K,) → (n, K)."""
    delta, nu = (tensor.cpu().double().numpy() for tensor in (distances, dof))
    student = special.fdtrc(n_features, np.where(np.isinf(nu), 1.0, nu), delta / n_features)
    probability = np.where(np.isinf(nu), special.chdtrc(n_features, delta), student)
    return torch.from_numpy(probability).to(distances)


def distance_limits(probability: float, dof: Tensor, n_features: int) -> Tensor:
    """The squared distances (K,) beyond which this share of the rows of each component lies."""
    nu = dof.cpu().double().numpy()
    student = n_features * stats.f.isf(probability, n_features, np.where(np.isinf(nu), 1.0, nu))
    limits = np.where(np.isinf(nu), stats.chi2.isf(probability, n_features), student)
    return torch.from_numpy(limits).to(dof.device, accumulation_dtype(dof.device))
