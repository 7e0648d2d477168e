"""Information criteria: how well a mixture explains data, and at what cost in parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.chunks import Chunks
from tmixture.numerics import exact

LogJoint = Callable[[Tensor], Tensor]
"""Log π_k + log T(x_i; μ_k, Σ_k, ν_k) of rows: (n, d) → (n, K)."""


def information_criteria(
    mixtures: Sequence[tuple[LogJoint, int]], chunks: Chunks, *, shared: bool
) -> list[dict[str, float]]:
    """Mean "log_likelihood", "bic", "aic" and "icl" of several mixtures, from one pass over the data.

    BIC is −2·log L + p·log N, AIC −2·log L + 2p, and ICL adds 2·Σ_i entropy(r_i) to BIC (Biernacki et al. 2000). N is
    the sum of the sample weights.

    Args:
        mixtures: of each what it says of rows, and p, the number of its free parameters.
        chunks: the data.
        shared: whether to add up what all processes have.
    """
    parts = [torch.stack([_sums(joint(chunk.x), chunk.weight) for joint, _ in mixtures]) for chunk in chunks]
    totals = torch.stack(parts).sum(0) * chunks.weight_unit
    if shared:
        distributed.sum_in_place([totals])
    return [_criteria(sums, n_free) for sums, (_, n_free) in zip(totals.tolist(), mixtures)]


def _criteria(sums: list[float], n_free_parameters: int) -> dict[str, float]:
    log_likelihood, weight, entropy = sums
    if not weight > 0:
        raise ValueError("sample_weight is zero for every row")
    bic = -2 * log_likelihood + n_free_parameters * math.log(weight)
    return {
        "log_likelihood": log_likelihood / weight,
        "bic": bic,
        "aic": -2 * log_likelihood + 2 * n_free_parameters,
        "icl": bic + 2 * entropy,
    }


def _sums(joint: Tensor, weight: Tensor | None) -> Tensor:
    """Log-likelihood, weight and entropy of the responsibilities of a chunk (n, K), each summed over its rows."""
    weight = exact(joint.new_ones(len(joint)) if weight is None else weight)
    log_prob = joint.logsumexp(1)
    logs = joint - log_prob[:, None]
    entropy = -(logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(1)
    return torch.stack([weight @ exact(log_prob), weight.sum(), weight @ exact(entropy)])
