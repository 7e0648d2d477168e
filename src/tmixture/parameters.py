"""The parameters of a mixture as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tmixture.scales import Scale


@dataclass(frozen=True)
class Parameters:
    """Weights (K,), means (K, d), scales and degrees of freedom (K,) of a Student-t mixture."""

    weights: Tensor
    means: Tensor
    scale: Scale
    dof: Tensor

    @property
    def n_components(self) -> int:
        """K."""
        return self.means.shape[0]

    @property
    def n_features(self) -> int:
        """D."""
        return self.means.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, the scale structure's among them."""
        return {"weights": self.weights, "means": self.means, **self.scale.tensors(), "dof": self.dof}

    def to(self, target: torch.device | torch.dtype) -> Parameters:
        """A copy on another device or with another dtype."""
        return Parameters(self.weights.to(target), self.means.to(target), self.scale.to(target), self.dof.to(target))

    def check_range(self, dtype: torch.dtype) -> None:
        """Raise a `ValueError` if a finite number among them is not finite in a dtype."""
        for name, tensor in self.tensors().items():
            if bool((tensor.isfinite() & ~tensor.to(dtype).isfinite()).any()):
                raise ValueError(
                    f"the {name} of this mixture reach {float(tensor[tensor.isfinite()].abs().max()):.3g}, more than "
                    f"dtype={dtype} holds: use dtype=torch.float32, or data in other units"
                )

    def take(self, components: Tensor) -> Parameters:
        """The parameters with the given components in the given order; the weights are not renormalised."""
        return Parameters(
            self.weights[components], self.means[components], self.scale.take(components), self.dof[components]
        )

    def variance_within(self) -> Tensor:
        """The variance of each feature (d,) within the components, averaged over these by their weights."""
        return (self.weights[:, None] * self.scale.variances(self.n_features)).sum(0)

    def origin(self) -> Tensor:
        """The mixture's mean Σ_k π_k μ_k (d,): the reference point of all distances and moments.

        Every quantity computed about it is independent of it but for rounding, so no gradient flows through it.
        """
        return (self.weights @ self.means).detach()
