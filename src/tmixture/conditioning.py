"""What a mixture says of some features where others are known."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily

from tmixture.distributions import MultivariateStudentT
from tmixture.numerics import exact
from tmixture.parameters import Parameters


def conditional(parameters: Parameters, features: Tensor, values: Tensor, dtype: torch.dtype) -> MixtureSameFamily:
    """The mixture of the other features: each component's conditional, weighted by π_k·T_k(x_B).

    Args:
        parameters: of the mixture of all d features.
        features: indices (m,) of those that are known, B.
        values: x_B (…, m).
        dtype: of the result.
    """
    values = exact(values).unsqueeze(-2)
    matrices = exact(parameters.scale.dense(parameters.n_components, parameters.n_features))
    components = MultivariateStudentT(
        exact(parameters.dof), exact(parameters.means), scale_matrix=matrices, validate_args=False
    )
    joint = exact(parameters.weights).log() + components.marginal(features).log_prob(values)
    others = components.conditional(features, values)
    others = MultivariateStudentT(
        others.df.to(dtype), others.loc.to(dtype), others.scale_tril.to(dtype), validate_args=False
    )
    return MixtureSameFamily(Categorical(logits=joint.to(dtype), validate_args=False), others, validate_args=False)
