"""What the tests of the losses have in common."""

import copy
from functools import cache

import torch

from tmixture import StudentTMixture


def clustered(n, *, n_clusters=4, width=6, spread=1.0, seed=0, dtype=torch.float32):
    """Points (n, d) of overlapping clusters, and the clusters they are from."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(n_clusters, width, generator=torch.Generator().manual_seed(100))
    labels = torch.arange(n) % n_clusters
    points = centres[labels] + 0.4 * spread * torch.randn(n, width, generator=generator)
    return points.to(dtype), labels


def fitted(n_components=4, width=6, **settings):
    """A mixture that knows the unit vectors of `clustered`."""
    return copy.deepcopy(_fitted(n_components, width, **settings))


@cache
def _fitted(n_components, width, **settings):
    x = torch.nn.functional.normalize(clustered(400, width=width, seed=99)[0], dim=1)
    return StudentTMixture(n_components, width, generator=0, **settings).fit(x)


def leaf(x):
    """A copy that gradients arrive at."""
    return x.detach().clone().requires_grad_()
