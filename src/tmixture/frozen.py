"""Parts of a mixture that a fit leaves as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tmixture.data.arrays import as_tensor
from tmixture.scales import Scale

PARTS = ("weights", "means", "scales", "dof")


@dataclass(frozen=True)
class Frozen:
    """Masks (K,) of the components whose weights, means, scales and ν stay as they are."""

    weights: Tensor
    means: Tensor
    scales: Tensor
    dof: Tensor

    @classmethod
    def of(
        cls, parts: dict[str, list[bool]] | None, background: bool, n_components: int, device: torch.device
    ) -> Frozen | None:
        """From what `checked_parts` has returned, and whether the last component is a background; None for nothing."""
        if parts is None and not background:
            return None
        masks = {part: [False] * n_components for part in PARTS} | (parts or {})
        if background:
            masks |= {part: [*masks[part][:-1], True] for part in ("means", "scales", "dof")}
        return cls(**{part: torch.tensor(mask, device=device) for part, mask in masks.items()})

    @property
    def n_free(self) -> tuple[int, ...]:
        """How many weights, means, scales and ν are free."""
        return tuple(int((~mask).sum()) for mask in (self.weights, self.means, self.scales, self.dof))

    def scale_of(self, new: Scale, old: Scale) -> Scale:
        """The new scales, but for those that stay; one that all components share stays or does not."""
        if new.per_component:
            return new.where(~self.scales, old)
        return old if bool(self.scales[0]) else new


def checked_parts(value: Any, n_components: int, *, shared_scale: bool) -> dict[str, list[bool]] | None:
    """Masks (K,) by part, of a name, several names, or a mapping from names to masks.

    Raises:
        ValueError: a part is unknown, or a mask does not fit.
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    strange = [name for name in names if name not in PARTS]
    if strange or not names:
        raise ValueError(f"frozen must name parts among {', '.join(map(repr, PARTS))}, got {value!r}")
    given = names if isinstance(names, Mapping) else dict.fromkeys(names, True)
    masks = {name: _mask(name, mask, n_components) for name, mask in given.items()}
    if shared_scale and len(set(masks.get("scales", [False]))) > 1:
        raise ValueError("frozen scales of a tied structure must be all or none: the components share one")
    return masks


def require_values(parts: dict[str, list[bool]] | None, init: Any, responsibilities: bool) -> None:
    """Raise a `ValueError` if what is frozen has no value before a first fit."""
    given = {"dof"} | ({"means"} if isinstance(init, Tensor) and not responsibilities else set())
    missing = [name for name, mask in (parts or {}).items() if any(mask) and name not in given]
    if missing:
        raise ValueError(
            f"frozen names {', '.join(map(repr, missing))}, of which this mixture has none yet: make it by "
            "`StudentTMixture.from_parameters`, fit it first and set `frozen` then, or give means as `init`"
        )


def _mask(name: str, value: Any, n_components: int) -> list[bool]:
    if isinstance(value, bool):
        return [value] * n_components
    mask = as_tensor(value, f"frozen[{name!r}]")
    if mask.dtype != torch.bool or tuple(mask.shape) != (n_components,):
        raise ValueError(
            f"frozen[{name!r}] must be a bool or a mask of {n_components} components, got {mask.dtype} of shape "
            f"{tuple(mask.shape)}"
        )
    return mask.tolist()
