"""How much of a scale is regularization."""

import warnings

import numpy as np
import pytest
import torch

from tmixture.reseeding import share_of_regularization

from . import naive
from .helpers import from_model


@pytest.mark.parametrize("structure", ["diag", "spherical", "full", "tied"])
def test_the_share_of_regularization(structure):
    parameters = from_model(naive.random_model(3, 2, structure), structure, dtype=torch.float64).snapshot()
    rows, added = np.array([0.0, 50.0, 150.0]), torch.tensor([1e-3, 1e3], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does a component without rows overflow
        share = share_of_regularization(rows, 200.0, parameters, added)
    precisions = parameters.scale.precisions(2).expand(3, -1).numpy()
    credited = 200 / 3 / rows[1:, None] if parameters.scale.per_component else 1.0
    np.testing.assert_allclose(share[1:], precisions[1:] * added.numpy() * credited)
    assert np.isfinite(share).all()
