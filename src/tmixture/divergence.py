"""How different components, and mixtures, are from each other."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tmixture import validation
from tmixture.directional import DirectionalMixture
from tmixture.model import MixtureModel
from tmixture.numerics import exact
from tmixture.sampling import as_generator


class Divergence(NamedTuple):
    """An estimate from random rows, with its standard error; of one number or of a matrix of them."""

    value: Tensor
    standard_error: Tensor


@torch.no_grad()
def component_divergence(
    mixture: MixtureModel, *, n: int = 2000, generator: torch.Generator | int | None = None
) -> Divergence:
    """Jeffreys' divergence KL(j‖k) + KL(k‖j) of each pair of components, in nats: (K, K), symmetric.

    Student-t distributions have no closed form of it. It is the mean of log T_j − log T_k over n rows drawn from
    component j, and the other way round. Of components that hardly overlap it says how far apart they are, and it has
    no bound: two tight components are farther apart than two wide ones at the same distance.

    Args:
        mixture: fitted.
        n: rows drawn from each component.
        generator: source of randomness, or a seed.

    Examples:
        >>> x = torch.cat([torch.randn(500, 2), 5 + torch.randn(500, 2)])
        >>> mixture = StudentTMixture(2, 2, generator=0).fit(x)
        >>> component_divergence(mixture).value.shape
        torch.Size([2, 2])
    """
    mixture.require_fitted()
    n, K = validation.positive_integer(n, "n"), mixture.n_components
    generator = as_generator(validation.generator(generator))
    one_way, variance = torch.zeros(2, K, K, dtype=torch.float64).unbind()
    for k in range(K):
        logs = exact(mixture.component_log_prob(mixture.sample_of(torch.full((n,), k), generator=generator))).cpu()
        excess = logs[:, k, None] - logs
        one_way[k], variance[k] = excess.mean(0), excess.var(0) / n
    return Divergence(one_way + one_way.T, (variance + variance.T).sqrt())


@torch.no_grad()
def mixture_divergence(
    one: MixtureModel | DirectionalMixture,
    other: MixtureModel | DirectionalMixture,
    *,
    n: int = 10_000,
    generator: torch.Generator | int | None = None,
) -> Divergence:
    """The Jensen–Shannon divergence of two mixtures, in nats: 0 if they are the same, at most log 2.

    It is the mean of KL(p‖m) and KL(q‖m) with m = (p + q)/2 (Lin 1991), from n rows drawn from each. It compares what
    they say of rows: neither the order of their components, nor their number, nor their structures matter.

    Args:
        one: fitted; also a `DirectionalMixture`, beside another one.
        other: fitted, with as many features.
        n: rows drawn from each.
        generator: source of randomness, or a seed.
    """
    n, generator = validation.positive_integer(n, "n"), as_generator(validation.generator(generator))
    if isinstance(one, DirectionalMixture) != isinstance(other, DirectionalMixture):
        raise ValueError("a density on the sphere cannot be compared with one around it")
    if one.n_features != other.n_features:
        raise ValueError(f"other has {other.n_features} features, but one has {one.n_features}")
    halves = []
    for drawn, beside in ((one, other), (other, one)):
        x = drawn.sample(n, generator=generator)[0]
        own, its = exact(drawn.log_prob(x)).cpu(), exact(beside.log_prob(x.to(beside.weights.device))).cpu()
        halves.append(own - torch.logaddexp(own, its) + math.log(2))
    terms = torch.stack(halves)
    return Divergence(terms.mean().clamp(min=0), (terms.var(1).sum() / n).sqrt() / 2)
