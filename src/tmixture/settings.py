"""The settings of a mixture, as a type checker knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from tmixture.priors import Prior
from tmixture.step_sizes import StepSize

CovarianceType = Literal["full", "diag", "spherical", "lowrank", "tied", "tied_diag", "tied_spherical"]
Init = Literal["kmeans", "kmeans++", "random"]


class CommonSettings(TypedDict, total=False):
    """Keyword arguments of `StudentTMixture`, which has the documentation; without ν, structure and rank."""

    learn_dof: Literal[False, "shared", "component"]
    reg_covar: float | Literal["auto"]
    init: Init | Tensor | np.ndarray
    n_init: int
    max_iter: int
    tol: float
    component_labels: Tensor | list[int] | None
    anchor_rows: float
    prior: Prior | None
    frozen: str | Iterable[str] | Mapping[str, Any] | None
    background: bool
    allow_missing: bool
    scale_update: Literal["px", "classic"]
    dof_bounds: tuple[float, float]
    step_size: StepSize
    warm_start: bool
    max_candidates: int | None
    chunk_size: int | None
    allow_tf32: bool
    distributed: bool
    generator: torch.Generator | int | None
    verbose: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class FitSettings(CommonSettings, total=False):
    """What `select_components` passes on."""

    dof: float | Tensor | list[float]


class GivenSettings(CommonSettings, total=False):
    """What `StudentTMixture.from_parameters` passes on."""

    rank: int | None
