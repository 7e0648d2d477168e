"""Checks of arguments: each returns the value in its final form or raises an error that names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from tmixture.data.arrays import as_array, as_tensor
from tmixture.priors import Prior
from tmixture.scales import STRUCTURES, Scale
from tmixture.step_sizes import StepSize

T = TypeVar("T")

# By how much entries of a symmetric matrix may differ from each other, as correlations.
ASYMMETRY = 1e-4


def positive_integer(value: int, name: str) -> int:
    """An integer ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def whole_number(value: int, name: str) -> int:
    """An integer ≥ 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be an integer that is not negative, got {value!r}")
    return int(value)


def at_most(value: int | None, limit: int, name: str) -> int | None:
    """An integer in 1 … n_components, or None."""
    if value is None:
        return None
    if positive_integer(value, name) > limit:
        raise ValueError(f"{name} must be at most n_components={limit}, got {value}")
    return int(value)


def not_negative(value: float, name: str) -> float:
    """A finite number ≥ 0."""
    if not isinstance(value, (int, float, np.number)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
    return float(value)


def one_of(value: T, options: tuple[T, ...], name: str) -> T:
    """One of the options."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in options):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def rank(value: int | None, structure: type[Scale], n_features: int) -> int | None:
    """The rank of a structure that has one, 1 ≤ q < d; None for any other."""
    name = structure.covariance_type
    if not structure.takes_rank:
        if value is not None:
            with_rank = " or ".join(repr(other) for other, kind in STRUCTURES.items() if kind.takes_rank)
            raise ValueError(f"rank is for covariance_type={with_rank} only, got rank={value!r} with {name!r}")
        return None
    if value is None:
        raise ValueError(f"covariance_type={name!r} needs a rank, such as rank=8")
    rank = positive_integer(value, "rank")
    if rank >= n_features:
        raise ValueError(f"rank must be smaller than n_features={n_features}, got {rank}: use covariance_type='full'")
    return rank


def features(value: Any, n_features: int) -> Tensor:
    """Indices of some features, each at most once, from these or from a mask (d,)."""
    chosen = as_tensor(value, "features").detach()
    if chosen.dtype == torch.bool and tuple(chosen.shape) == (n_features,):
        chosen = chosen.nonzero()[:, 0]
    integral = not chosen.is_floating_point() and chosen.dtype != torch.bool
    indices = chosen.tolist() if chosen.dim() == 1 and integral else []
    if not indices or len(set(indices)) < len(indices) or not all(0 <= index < n_features for index in indices):
        raise ValueError(
            f"features must be different indices in 0 … {n_features - 1}, at least one, or a mask of {n_features}, "
            f"got {value!r}"
        )
    return chosen.long()


def probability(value: Any, name: str) -> float:
    """A number in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < 1:
        raise ValueError(f"{name} must be a probability in (0, 1), got {value!r}")
    return float(value)


def probabilities(value: Any) -> Tensor:
    """Floating-point numbers (n,) in (0, 1)."""
    p = as_tensor(value, "p")
    if p.dim() != 1 or not p.is_floating_point() or not bool(((p > 0) & (p < 1)).all()):
        raise ValueError(f"p must be probabilities (n,) in (0, 1), got {value!r}")
    return p


def components(value: Any, n_components: int) -> Tensor:
    """Numbers (n,) of components."""
    numbers = as_tensor(value, "component").detach()
    if numbers.dim() != 1 or numbers.is_floating_point() or not bool(((numbers >= 0) & (numbers < n_components)).all()):
        raise ValueError(f"component must be integers (n,) in 0 … {n_components - 1}, got {value!r}")
    return numbers.long()


def known_values(value: Any, n_known: int, n_features: int) -> Tensor:
    """Values (…, m) of m features, which leave at least one of d."""
    if n_known == n_features:
        raise ValueError(f"features must leave at least one of {n_features} features to be told, got all of them")
    values = as_tensor(value, "values")
    if values.dim() < 1 or values.shape[-1] != n_known or not values.is_floating_point():
        raise ValueError(
            f"values must be floating-point numbers of shape (…, {n_known}), one for each of the features, "
            f"got {values.dtype} of shape {tuple(values.shape)}"
        )
    return values


def bounds(value: tuple[float, float], name: str) -> tuple[float, float]:
    """A pair 0 < low < high < ∞."""
    numbers = isinstance(value, Sequence) and all(isinstance(bound, (int, float, np.number)) for bound in value)
    if not numbers or len(value) != 2 or not 0 < value[0] < value[1] < math.inf:
        raise ValueError(f"{name} must be a pair 0 < low < high < inf, got {value!r}")
    return float(value[0]), float(value[1])


def regularization(value: Any) -> Any:
    """A finite number ≥ 0 or "auto"."""
    return value if value == "auto" else not_negative(value, "reg_covar")


def step_size(value: StepSize) -> StepSize:
    """A constant in (0, 1] or a callable."""
    if not callable(value) and not (isinstance(value, (int, float)) and 0 < value <= 1):
        raise ValueError(f"step_size must lie in (0, 1] or be a function of the batch number, got {value!r}")
    return value


def init(value: Any, options: tuple[str, ...], n_components: int, n_features: int) -> str | Tensor:
    """A named initialisation or means (K, d)."""
    if isinstance(value, str):
        return one_of(value, options, "init")
    means = None if value is None else as_tensor(value, "init").detach()
    if means is None or tuple(means.shape) != (n_components, n_features) or not means.isfinite().all():
        got = value if means is None else f"a tensor of shape {tuple(means.shape)}"
        raise ValueError(
            f"init must be one of {', '.join(map(repr, options))} or finite means of shape "
            f"({n_components}, {n_features}), got {got}"
        )
    return means


def prior(value: Any, n_features: int) -> Prior | None:
    """A prior with plain numbers that fit the features."""
    if value is None:
        return None
    if not isinstance(value, Prior):
        raise ValueError(f"prior must be a tmixture.Prior or None, got {value!r}")
    if not isinstance(value.weight_rows, (int, float)) or not math.isfinite(value.weight_rows):
        raise ValueError(f"prior.weight_rows must be a finite number, got {value.weight_rows!r}")
    for name in ("mean_rows", "scale_rows"):
        not_negative(getattr(value, name), f"prior.{name}")
    mean, scale = (_exactly(given, name) for given, name in ((value.mean, "prior.mean"), (value.scale, "prior.scale")))
    if mean is not None and (tuple(mean.shape) != (n_features,) or not mean.isfinite().all()):
        raise ValueError(f"prior.mean must be {n_features} finite numbers, got {value.mean!r}")
    if scale is not None and not _are_variances(scale, n_features):
        raise ValueError(
            f"prior.scale must be {n_features} positive variances, or a symmetric positive definite matrix "
            f"({n_features}, {n_features}), got {value.scale!r}"
        )
    return replace(value, mean=None if mean is None else mean.tolist(), scale=None if scale is None else scale.tolist())


def _exactly(value: Any, name: str) -> Tensor | None:
    """Numbers as they are given, which a tensor of floats of Python's would round."""
    if value is None:
        return None
    return as_tensor(value if isinstance(value, Tensor) else as_array(value, name), name).detach()


def _are_variances(scale: Tensor, n_features: int) -> bool:
    """Whether these are positive variances (d,) or a covariance matrix (d, d)."""
    if tuple(scale.shape) == (n_features,):
        return bool((scale.isfinite() & (scale > 0)).all())
    if tuple(scale.shape) != (n_features, n_features) or not torch.allclose(scale, scale.T):
        return False
    return not bool(torch.linalg.cholesky_ex(scale.double())[1])


def background(value: bool, n_components: int, structure: type[Scale]) -> bool:
    """Whether there is one, which needs a scale of its own, and company."""
    if value and (n_components == 1 or not structure.per_component):
        raise ValueError(
            f"background=True needs another component and a structure with a scale for each, got n_components="
            f"{n_components} and covariance_type={structure.covariance_type!r}"
        )
    return bool(value)


def component_labels(value: Any, n_components: int, *, background: bool = False) -> list[int] | None:
    """The class of each component, −1 for none, of which a background, the last one, is."""
    if value is None:
        return [*range(n_components - 1), -1] if background else None
    labels = as_tensor(value, "component_labels").detach()
    if tuple(labels.shape) != (n_components,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"component_labels must be integers, one for each of {n_components} components, got {value!r}")
    if not (labels >= 0).any() or (labels < -1).any():
        raise ValueError(f"component_labels must be classes 0, 1, … or −1 for none, got {value!r}")
    if background and labels[-1] != -1:
        raise ValueError(f"component_labels must end with −1, as the background has no class, got {value!r}")
    return labels.tolist()


def dof(value: Any, n_components: int, learned: Any, limits: tuple[float, float]) -> Tensor:
    """Degrees of freedom (K,), in float64."""
    try:
        nu = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError):
        raise ValueError(f"dof must be a number or one per component ({n_components}), got {value!r}") from None
    if nu.dim() > 1 or (nu.dim() == 1 and len(nu) != n_components):
        raise ValueError(f"dof must be a number or one per component ({n_components}), got shape {tuple(nu.shape)}")
    if not (nu > 0).all():
        raise ValueError(f"dof must be positive, got {value!r}")
    if learned and nu.isinf().any():
        raise ValueError("dof must be finite to be learned: give the value to start from, such as dof=10.0")
    if learned == "shared" and nu.dim() == 1 and not (nu == nu[0]).all():
        raise ValueError("dof must be one number when learn_dof='shared'")
    nu = nu.expand(n_components).clone()
    return nu.clamp(*limits) if learned else nu


def generator(value: Any) -> torch.Generator | int | None:
    """A generator, a seed or None."""
    if value is None or isinstance(value, torch.Generator):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"generator must be a torch.Generator, a seed or None, got {value!r}")
    return int(value)


def floating(dtype: torch.dtype) -> torch.dtype:
    """A dtype that parameters can have."""
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
    return dtype


def batch(x: Any, n_features: int) -> Tensor:
    """Rows (n, d) as a tensor of real numbers."""
    x = as_tensor(as_array(x, "x") if isinstance(x, (list, tuple)) else x, "x")
    if x.dim() != 2 or x.shape[1] != n_features:
        hint = "; one row is x[None]" if x.dim() == 1 else ""
        raise ValueError(f"x must have shape (N, {n_features}), got {tuple(x.shape)}{hint}")
    return x


def means(value: Any) -> Tensor:
    """Finite means (K, d)."""
    given = as_tensor(value, "means").detach()
    if given.dim() != 2:
        raise ValueError(f"means must have shape (K, d), got {tuple(given.shape)}")
    if not given.isfinite().all():
        raise ValueError(
            f"means must be finite, but that of component {int((~given.isfinite()).nonzero()[0, 0])} is not"
        )
    return given


def covariance_matrices(value: Any, n_components: int, n_features: int, name: str = "scales") -> Tensor:
    """Scale matrices (K, d, d), symmetric and positive definite, in float64."""
    matrices = as_tensor(value, name).detach().double()
    shape = (n_components, n_features, n_features)
    if tuple(matrices.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(matrices.shape)}")
    deviations = matrices.diagonal(dim1=1, dim2=2).abs().sqrt()
    difference = (matrices - matrices.mT).abs() > ASYMMETRY * deviations[:, :, None] * deviations[:, None, :]
    if difference.any():
        component = int(difference.nonzero()[0, 0])
        raise ValueError(f"{name} must be symmetric, but that of component {component} is not")
    matrices = (matrices + matrices.mT) / 2
    _, failure = torch.linalg.cholesky_ex(matrices)
    if failure.any():
        raise ValueError(f"{name} must be positive definite, but that of component {int(failure.nonzero()[0])} is not")
    return matrices


def factors(loadings: Any, noise: Any, scales: Any, n_components: int, n_features: int) -> dict[str, Tensor] | None:
    """The tensors of low-rank scales in float64, from Λ (K, d, q) and the diagonals (K, d) of Ψ; None if not given."""
    if (scales is None) == (loadings is None) or (loadings is None) != (noise is None):
        raise ValueError("either scales, or both loadings and noise must be given")
    if loadings is None:
        return None
    given = as_tensor(loadings, "loadings").detach().double()
    if given.dim() != 3 or tuple(given.shape[:2]) != (n_components, n_features) or not given.isfinite().all():
        shape = f"({n_components}, {n_features}, q)"
        raise ValueError(f"loadings must be finite and of shape {shape}, got shape {tuple(given.shape)}")
    variance = as_tensor(noise, "noise").detach().double()
    if tuple(variance.shape) != (n_components, n_features) or not ((variance > 0) & variance.isfinite()).all():
        shape = f"({n_components}, {n_features})"
        raise ValueError(f"noise must be positive, finite and of shape {shape}, got shape {tuple(variance.shape)}")
    return {"whitening": variance.rsqrt(), "loadings": given}


def weights(value: Any, n_components: int) -> Tensor:
    """Mixture weights (K,) in float64, of sum one, from numbers that are not negative, nor all zero."""
    given = as_tensor(value, "weights").detach()
    if tuple(given.shape) != (n_components,) or not ((given >= 0) & given.isfinite()).all() or not given.sum() > 0:
        raise ValueError(f"weights must be {n_components} numbers that are not negative, nor all zero; got {value!r}")
    return given.double() / given.double().sum()
