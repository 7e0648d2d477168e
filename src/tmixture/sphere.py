"""Densities on the unit sphere around a direction μ, of unit rows x: what their one parameter makes of them.

**von Mises–Fisher**, f = C_d(κ)·exp(κ·μᵀx) with C_d(κ) = κ^h/((2π)^(h+1)·I_h(κ)) and h = d/2 − 1: the normal
distribution of directions (Banerjee, Dhillon, Ghosh & Sra 2005). **Spherical Cauchy**, f = Γ(d/2)/(2π^(d/2))·((1 −
ρ²)/(1 + ρ² − 2ρ·μᵀx))^(d−1): heavy-tailed, and normalised in closed form (Kato & McCullagh 2020, "Some properties of a
Cauchy family on the sphere derived from the Möbius transformations").

What is of components alone, few numbers, is worked out in float64 by NumPy and SciPy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from scipy import special
from torch import Tensor

# Below this e^(−κ)·I_h(κ) has lost digits, or is zero.
UNDERFLOW = 1e-280
NEWTON_STEPS = 12
HALVINGS = 60


class Family(ABC):
    """Densities with one parameter of concentration, as functions of the cosine μᵀx."""

    name: ClassVar[str]
    most: ClassVar[float]
    """The largest concentration, nearly a point; the least is 0, uniform."""

    @abstractmethod
    def log_normalizer(self, concentration: np.ndarray, d: int) -> np.ndarray:
        """The logarithm of the density's factor that no row changes: (K,) → (K,)."""

    @abstractmethod
    def log_kernel(self, cosines: Tensor, concentration: Tensor, d: int) -> Tensor:
        """The logarithm of the rest: cosines μᵀx (n, K), concentrations (K,) → (n, K), differentiable."""

    @abstractmethod
    def row_weights(self, cosines: Tensor, concentration: Tensor) -> Tensor:
        """W, by which EM weighs rows (n, K) beside r."""

    @abstractmethod
    def sample_cosines(self, concentration: Tensor, d: int, generator: torch.Generator | None) -> Tensor:
        """Random μᵀx of rows with these concentrations: (n,) → (n,), in float64 on the CPU."""

    @abstractmethod
    def estimate(self, n: np.ndarray, mass: np.ndarray, resultant: np.ndarray, d: int) -> np.ndarray:
        """The concentrations (K,) that maximise Q.

        Args:
            n: (K,), Σ r.
            mass: (K,), Σ r·w.
            resultant: (K,), ‖Σ r·w·x‖.
            d: number of features.
        """


class VonMisesFisher(Family):
    """κ from 0, uniform, to what float64 tells from a point."""

    name = "von_mises_fisher"
    most: ClassVar[float] = 1e8

    def log_normalizer(self, concentration: np.ndarray, d: int) -> np.ndarray:
        h, kappa = d / 2 - 1, np.maximum(concentration, 1e-300)
        uniform = special.gammaln(d / 2) - math.log(2) - d / 2 * math.log(math.pi)
        constant = h * np.log(kappa) - d / 2 * math.log(2 * math.pi) - log_bessel(h, kappa)
        return np.where(concentration < 1e-100, uniform, constant)

    def log_kernel(self, cosines: Tensor, concentration: Tensor, d: int) -> Tensor:
        return concentration * cosines

    def row_weights(self, cosines: Tensor, concentration: Tensor) -> Tensor:
        return torch.ones_like(cosines)

    def sample_cosines(self, concentration: Tensor, d: int, generator: torch.Generator | None) -> Tensor:
        """By rejection from a transformed beta distribution (Wood 1994)."""
        kappa = concentration.double()
        b = (d - 1) / (2 * kappa + (4 * kappa.square() + (d - 1) ** 2).sqrt())
        centre = (1 - b) / (1 + b)
        limit = kappa * centre + (d - 1) * torch.log1p(-centre.square())
        cosines, left = torch.empty_like(kappa), torch.arange(len(kappa))
        while len(left):
            z = random_beta((d - 1) / 2, len(left), generator)
            t = (1 - (1 + b[left]) * z) / (1 - (1 - b[left]) * z)
            u = torch.rand(len(left), generator=generator, dtype=torch.float64)
            excess = kappa[left] * t + (d - 1) * torch.log1p(-centre[left] * t) - limit[left]
            accepted = excess >= u.log()
            cosines[left[accepted]] = t[accepted]
            left = left[~accepted]
        return cosines

    def estimate(self, n: np.ndarray, mass: np.ndarray, resultant: np.ndarray, d: int) -> np.ndarray:
        """The κ with A_d(κ) = ‖Σ r·x‖/Σ r, by Newton's method from Banerjee's approximation (Sra 2012)."""
        length = np.clip(resultant / n, 0, 1 - 1e-14)
        kappa = length * (d - length**2) / (1 - length**2)
        for _ in range(NEWTON_STEPS):
            ratio = bessel_ratio(d / 2 - 1, np.maximum(kappa, 1e-300))
            slope = np.maximum(1 - ratio**2 - (d - 1) / np.maximum(kappa, 1e-300) * ratio, 1e-300)
            kappa = np.clip(kappa - (ratio - length) / slope, kappa / 4, self.most)
        return kappa


class SphericalCauchy(Family):
    """ρ from 0, uniform, to 1."""

    name = "cauchy"
    most: ClassVar[float] = 1 - 1e-12

    def log_normalizer(self, concentration: np.ndarray, d: int) -> np.ndarray:
        uniform = special.gammaln(d / 2) - math.log(2) - d / 2 * math.log(math.pi)
        return uniform + (d - 1) * np.log1p(-(concentration**2))

    def log_kernel(self, cosines: Tensor, concentration: Tensor, d: int) -> Tensor:
        # 1 + ρ² − 2ρt as a sum of two terms that are not negative, lest they cancel near μ.
        return (1 - d) * ((1 - concentration).square() + 2 * concentration * (1 - cosines).clamp(min=0)).log()

    def row_weights(self, cosines: Tensor, concentration: Tensor) -> Tensor:
        return 1 / ((1 - concentration).square() + 2 * concentration * (1 - cosines).clamp(min=0))

    def sample_cosines(self, concentration: Tensor, d: int, generator: torch.Generator | None) -> Tensor:
        """Those of uniform rows under the Möbius transformation that moves the centre to ρ·μ."""
        rho = concentration.double()
        t = 2 * random_beta((d - 1) / 2, len(rho), generator) - 1
        return rho + (1 - rho.square()) * (t + rho) / (1 + rho.square() + 2 * rho * t)

    def estimate(self, n: np.ndarray, mass: np.ndarray, resultant: np.ndarray, d: int) -> np.ndarray:
        """The root in [0, 1) of ρ·n + (ρ·mass − resultant)·(1 − ρ²), where Q, given the weights w, has its maximum."""
        low, high = np.zeros_like(n), np.ones_like(n)
        for _ in range(HALVINGS):
            rho = (low + high) / 2
            below = rho * n + (rho * mass - resultant) * (1 - rho**2) < 0
            low, high = np.where(below, rho, low), np.where(below, high, rho)
        return np.minimum(low, self.most)


def random_beta(shape: float, n: int, generator: torch.Generator | None) -> Tensor:
    """Numbers (n,) with a Beta(shape, shape) distribution."""
    gammas = torch._standard_gamma(torch.full((2, n), shape, dtype=torch.float64), generator=generator)
    return gammas[0] / gammas.sum(0)


FAMILIES: dict[str, Family] = {family.name: family for family in (VonMisesFisher(), SphericalCauchy())}


def log_bessel(h: float, x: np.ndarray) -> np.ndarray:
    """Log I_h(x), the modified Bessel function of the first kind, for h ≥ −½ and x > 0.

    Where its values underflow, by the uniform expansion for large orders (DLMF 10.41.3), to a relative 1e-9 there.
    """
    scaled = special.ive(h, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = np.log(scaled) + x
    return np.where(np.isfinite(plain) & (scaled > UNDERFLOW), plain, _uniform_expansion(max(h, 0.5), x))


def _uniform_expansion(h: float, x: np.ndarray) -> np.ndarray:
    z = x / h
    root = np.sqrt(1 + z**2)
    p = 1 / root
    eta = root + np.log(z / (1 + root))
    u1 = (3 * p - 5 * p**3) / 24
    u2 = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    u3 = (30375 * p**3 - 369603 * p**5 + 765765 * p**7 - 425425 * p**9) / 414720
    return h * eta - np.log(2 * math.pi * h * root) / 2 + np.log1p(u1 / h + u2 / h**2 + u3 / h**3)


def bessel_ratio(h: float, x: np.ndarray) -> np.ndarray:
    """I_(h+1)(x)/I_h(x), the mean of μᵀx under a von Mises–Fisher distribution, between 0 and 1."""
    lower, upper = special.ive(h, x), special.ive(h + 1, x)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = upper / lower
    # Gauss's continued fraction, from the inside out, converges at once where the order is far above x.
    fraction = np.zeros_like(x)
    for k in range(60, 0, -1):
        fraction = 1 / (2 * (h + k) / x + fraction)
    return np.where(np.isfinite(plain) & (upper > UNDERFLOW), plain, fraction)
