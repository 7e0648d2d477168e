"""What is believed of a mixture before the data, as rows that count beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """What is believed of every component before the data, in rows: a fit then ends at the posterior mode.

    It is the conjugate prior of a Gaussian component (Fraley & Raftery 2007), and for a t it holds given the latent
    precisions. Up to constants its logarithm is

        Σ_k weight_rows·log π_k − ½·mean_rows·(μ_k − m)ᵀ Σ_k⁻¹ (μ_k − m) − ½·scale_rows·[log|Σ_k| + tr(Σ_k⁻¹ S)].

    Rows of the prior count as rows of data of average weight do, so that it fades as these grow in number.

    Args:
        weight_rows: rows that each component has in the weights: those of a Dirichlet distribution with the parameter
            1 + weight_rows. If negative, a component that finds no more than so many rows vanishes, so that one fit
            with many chooses how many are left, as with the −p/2 of Figueiredo & Jain (2002), p the number of
            parameters of a component. Where clusters are to be found by one component each it takes −2p and more.
        mean_rows: rows at `mean` that each component's mean is drawn to. They have no say in its scale's size but by
            their distance.
        scale_rows: rows of covariance `scale` that each component's scale shrinks to. An inverse Wishart distribution
            with ν degrees of freedom and matrix Λ has ν + d + 1 of them, and Λ = scale_rows·scale.
        mean: m (d,); None is the mean of the data, outliers clipped; in a stream it is that of the mixture.
        scale: variances (d,) or a matrix (d, d), S; None is diag(variances of the data)/K^(2/d): K such ellipsoids fill
            the volume of the data. In a stream that has begun it is the variances within its components at that time.
    """

    weight_rows: float = 0.0
    mean_rows: float = 0.0
    scale_rows: float = 0.0
    mean: Any = None
    scale: Any = None

    def marginal(self, features: Tensor) -> Prior:
        """That of some features alone, by their indices (m,)."""
        chosen = features.tolist()
        mean = self.mean and [self.mean[j] for j in chosen]
        scale = self.scale and [self.scale[j] for j in chosen]
        if scale and isinstance(scale[0], (list, tuple)):
            scale = [[row[j] for j in chosen] for row in scale]
        return replace(self, mean=mean, scale=scale)

    def mean_like(self, mean: Tensor) -> Tensor:
        """M (d,), in the place of the data's mean (d,)."""
        return mean if self.mean is None else torch.as_tensor(self.mean).to(mean)

    def scale_like(self, variance: Tensor) -> Tensor:
        """S (d, d), in the place of the variances (d,) that are to be expected."""
        scale = variance if self.scale is None else torch.as_tensor(self.scale).to(variance)
        return scale.diag() if scale.dim() == 1 else scale
