"""What the tests of the mixture have in common."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tmixture import StudentTMixture, scales

STRUCTURES = sorted(scales.STRUCTURES)  # a new one meets every law that is stated for all
CLOSED_FORM = ["diag", "full", "spherical", "tied", "tied_diag", "tied_spherical"]  # that `naive` maximises Q for
IN_SCIKIT_LEARN = ["diag", "full", "spherical", "tied"]  # its `GaussianMixture` has them
TIED = [name for name, structure in scales.STRUCTURES.items() if not structure.per_component]
LEARN_DOF = [False, "shared", "component"]


def in_turn(first, *others):
    """Each value of the first beside values of the others in turn: pairs are covered where products cost minutes."""
    return [(value, *(other[i % len(other)] for other in others)) for i, value in enumerate(first)]


def of(structure, rank=1):
    """The arguments that choose a structure, with the smallest rank where it takes one."""
    return {"covariance_type": structure, **({"rank": rank} if scales.STRUCTURES[structure].takes_rank else {})}


def from_model(model, structure, *, dtype=torch.float64, **settings):
    """A `StudentTMixture` with the parameters of a `naive.Model`, that `fit` continues from."""
    arguments = {"warm_start": True, "reg_covar": 0.0, "tol": 0.0, "dtype": dtype, **settings}
    dof = list(model.dof)
    return StudentTMixture.from_parameters(
        model.weights, model.means, model.scales, dof=dof, **of(structure), **arguments
    )


def parameters(mixture):
    """Weights, means, dense scales and dof as float64 arrays."""
    tensors = {"weights": mixture.weights, "means": mixture.means, "scales": mixture.scales, "dof": mixture.dof}
    return {name: tensor.detach().double().numpy() for name, tensor in tensors.items()}


def assert_same_parameters(one, other, rtol, atol=None):
    """Equal to `rtol` of the size of each tensor (or to `atol`)."""
    for name, expected in parameters(other).items() if isinstance(other, StudentTMixture) else vars(other).items():
        size = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
        np.testing.assert_allclose(
            parameters(one)[name], expected, rtol=rtol, atol=rtol * size if atol is None else atol, err_msg=name
        )


def computes(function, args):
    """Whether an operator computes anything, which a GPU launches a kernel for: views and empty tensors do not."""
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns)
    return not views and "empty" not in function._schema.name


class CallCounter(TorchDispatchMode):
    """Counts the calls of torch's operators, each of which costs a small fit about three microseconds.

    Args:
        counts: whether a call of an operator with some arguments counts.
    """

    def __init__(self, counts):
        super().__init__()
        self.counts, self.n_calls = counts, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n_calls += self.counts(function, args)
        return function(*args, **(kwargs or {}))
