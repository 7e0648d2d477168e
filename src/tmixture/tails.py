"""How far out the rows of a component lie: δ/d has the F(d, ν) distribution, or χ²(d)/d where ν = ∞.

Of x = μ + Σ^½ z/√u with z normal and u ~ χ²(ν)/ν, δ/d = (‖z‖²/d)/u is a ratio of two mean squares (Lange, Little &
Taylor 1989).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor


def tail_probability(distances: Tensor, dof: Tensor, n_observed: int | Tensor) -> Tensor:
    """P(δ ≥ δ_ik) of rows of component k, by what is observed of them; 1 where nothing is.

    Args:
        distances: δ (n, K).
        dof: ν, of a shape that broadcasts with them.
        n_observed: how many features they are of, d or (n, 1).
    """
    delta, nu = (tensor.cpu().double().numpy() for tensor in (distances, dof))
    d = n_observed.cpu().double().numpy() if isinstance(n_observed, Tensor) else float(n_observed)
    d = np.maximum(d, 1)  # of nothing δ is zero
    gaussian, nu = np.isinf(nu), np.where(np.isinf(nu), 1.0, nu)
    student = special.fdtrc(d, nu, delta / d)
    return torch.from_numpy(np.where(gaussian, special.chdtrc(d, delta), student)).to(distances)
