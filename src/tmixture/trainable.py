"""Training the parameters of a mixture by gradients instead of EM."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Transform, constraints, transform_to
from torch.nn.utils import parametrize


class Constrained(nn.Module):
    """A parametrization that keeps a tensor within a constraint, through `torch.distributions.transform_to`."""

    def __init__(self, constraint: constraints.Constraint) -> None:
        super().__init__()
        self.transform: Transform = transform_to(constraint)

    def forward(self, unconstrained: Tensor) -> Tensor:
        """The constrained value."""
        return self.transform(unconstrained)

    def right_inverse(self, value: Tensor) -> Tensor:
        """An unconstrained tensor that gives the value."""
        return self.transform.inv(value)


def train_by_gradients(module: nn.Module, tensors: dict[str, constraints.Constraint]) -> None:
    """Turn the named buffers into parameters that stay within their constraints, in place."""
    for name, constraint in tensors.items():
        value = getattr(module, name)
        del module._buffers[name]
        module.register_parameter(name, nn.Parameter(value.clone()))
        if constraint is not constraints.real:
            parametrize.register_parametrization(module, name, Constrained(constraint))
