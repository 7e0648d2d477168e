"""Random rows: a uniform sample of data that may only be read in chunks, and points of a mixture."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tmixture.numerics import exact
from tmixture.parameters import Parameters

# Elements of the sample: 128 MB in float32.
SAMPLE_ELEMENTS = 2**25
# The median of a sample is that of about so many of its rows.
MEDIAN_ROWS = 2**12
# Far rows among which others look for company.
FAR_ROWS = 2**11
# Nearest rows, itself among them, that a row has to have near by.
NEIGHBOURS = 5
# Rows of a temporary.
BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Sample:
    """A sample of the data, and what the pass that drew it saw.

    Attributes:
        x: (m, d) sampled rows; all rows with positive weight, in their order, if the sample size allows.
        weight: (m,) sample weights; ones where the rows were drawn in proportion to their weights.
        rows: number of rows with positive weight in the data.
    """

    x: Tensor
    weight: Tensor
    rows: int

    def times(self, factor: float) -> Sample:
        """The same rows with all weights multiplied by a factor."""
        return Sample(self.x, self.weight * factor, self.rows)

    def take(self, rows: Tensor) -> Sample:
        """Some of the rows, by a mask (m,)."""
        return Sample(self.x[rows], self.weight[rows], self.rows)

    def followed_by(self, other: Sample) -> Sample:
        """All rows of two samples that hold all of theirs, with the dtypes of the first."""
        x, weight = torch.cat([self.x, other.x.to(self.x)]), torch.cat([self.weight, other.weight.to(self.weight)])
        return Sample(x, weight, len(x))


def as_generator(value: torch.Generator | int | None) -> torch.Generator | None:
    """A generator as it is, or from a seed; None is torch's default generator."""
    return torch.Generator().manual_seed(value) if isinstance(value, int) else value


def draw_points(
    parameters: Parameters, component: Tensor, dtype: torch.dtype, generator: torch.Generator | None
) -> Tensor:
    """A point of each of these components (n,): (n, d), all on the CPU; x = μ + Σ^½·z/√u with u ~ Gamma(ν/2, ν/2)."""
    noise = torch.randn(len(component), parameters.n_features, generator=generator, dtype=dtype)
    dof = parameters.dof.to(noise)[component]
    half = torch.where(dof.isinf(), 1.0, dof) / 2
    precision = torch.where(dof.isinf(), 1.0, torch._standard_gamma(half, generator=generator) / half)
    scaled = parameters.scale.to(dtype).correlate(noise, component) / precision.sqrt()[:, None]
    return parameters.means.to(noise)[component] + scaled


def sample_size(n_components: int, n_features: int) -> int:
    """Rows in the sample that initialisation works on."""
    return max(64 * n_components, min(2**18, SAMPLE_ELEMENTS // n_features))


def completed(sample: Sample, at_least: int) -> Sample:
    """Its rows without missing values, if there are so many; else all of them, with the means of their features.

    Raises:
        ValueError: of some feature there is no value at all.
    """
    missing = sample.x.isnan()
    complete = ~missing.any(1)
    if complete.all():
        return sample
    if int(complete.sum()) >= at_least:
        return replace(sample, x=sample.x[complete], weight=sample.weight[complete])
    weight = sample.weight[:, None] * ~missing
    unseen = (weight.sum(0) == 0).nonzero()[:, 0].tolist()
    if unseen:
        raise ValueError(f"data has no value of features {unseen[:10]}: leave them out")
    means = (sample.x.nan_to_num(0.0) * weight).sum(0) / weight.sum(0).clamp(min=torch.finfo(weight.dtype).tiny)
    return replace(sample, x=torch.where(missing, means, sample.x))


def without_stray_rows(sample: Sample, at_least: int) -> Sample:
    """The sample without stray rows: at most 10 %, over a hundred times as far from the median as is usual, and alone.

    Corrupt rows must not set the scale of everything else. But a group of rows close to each other is a cluster,
    however rare and far away.
    """
    median = sample.x[:: math.ceil(len(sample.x) / MEDIAN_ROWS)].median(0).values
    distance = torch.cat([torch.linalg.vector_norm(rows - median, dim=1) for rows in sample.x.split(BLOCK_ROWS)])
    far = (distance > 100 * distance.median()).nonzero()[:, 0]
    if len(far) == 0 or len(far) > max(1, len(distance) // 10) or distance.median() == 0:
        return sample
    stray = far[~_has_company(sample.x[far] - median, distance[far])]
    if len(distance) - len(stray) < at_least:
        return sample
    keep = torch.ones_like(distance, dtype=torch.bool).index_fill_(0, stray, False)
    return Sample(sample.x[keep], sample.weight[keep], sample.rows)


def lonely(sample: Sample, at_most: int) -> Tensor:
    """Mask (m,) of the rows with so few others near by that they may belong to no cluster; none if they are too many.

    Those whose few nearest neighbours, among a part of the rows, are three times as far away as is usual.
    """
    others = sample.x[:: math.ceil(len(sample.x) / FAR_ROWS)]
    nearest = [
        torch.cdist(rows, others).topk(min(NEIGHBOURS, len(others)), largest=False).values[:, -1]
        for rows in sample.x.split(FAR_ROWS)
    ]
    distance = torch.cat(nearest)
    alone = distance > 3 * distance.median()
    return alone if int(alone.sum()) <= at_most else torch.zeros_like(alone)


def _has_company(x: Tensor, norm: Tensor) -> Tensor:
    """Which of the far rows (n, d) have two others within a tenth of their norms (n,)."""
    others = x[:: math.ceil(len(x) / FAR_ROWS)]
    near = [
        torch.cdist(rows, others) <= 0.1 * size[:, None] for rows, size in zip(x.split(FAR_ROWS), norm.split(FAR_ROWS))
    ]
    return torch.cat([rows.sum(1) for rows in near]) > 2  # itself among them


class Spread(NamedTuple):
    """Where rows lie, and how far apart: the mean and the variance of each feature, both (d,)."""

    mean: Tensor
    variance: Tensor


def spread(sample: Sample, *, clipped: bool = True) -> Spread:
    """The weighted mean and variance of each feature, with values clipped that lie far from its median.

    Far is more than ten times as far as is usual among the rows that differ from the median at all: neither do
    saturated or corrupt values count by their size, nor is a feature that is mostly constant taken for a constant.
    """
    some = slice(None, None, math.ceil(len(sample.x) / MEDIAN_ROWS))
    centre = _weighted_median(sample.x[some], sample.weight[some])
    distance = (sample.x[some] - centre).abs()
    reach = 10 * _weighted_median(distance, sample.weight[some, None] * (distance > 0))
    reach = reach if clipped else torch.full_like(reach, torch.inf)
    share = exact(sample.weight) / exact(sample.weight).sum()
    mean, square = exact(torch.zeros_like(centre)), exact(torch.zeros_like(centre))
    for rows, weight in zip(sample.x.split(BLOCK_ROWS), share.split(BLOCK_ROWS)):
        centred = exact((rows - centre).clamp(-reach, reach))
        mean += weight @ centred
        square += weight @ centred.square()
    return Spread(centre + mean, (square - mean.square()).clamp(min=0))


def sorted_columns(x: Tensor) -> Tensor:
    """Each column (n, d) in ascending order."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort(dim=0).values
    # NumPy sorts by vector instructions where the processor has them, and rows faster than columns.
    return torch.from_numpy(np.sort(x.T.contiguous().numpy(), axis=1)).T


def _weighted_median(x: Tensor, weight: Tensor) -> Tensor:
    """The least value of each column below or at which half of its weight lies: (n, d), (n,) or (n, d) → (d,)."""
    counted = weight > 0
    if torch.equal(weight, weight.max() * counted):  # a median of rows, for which values alone are sorted
        kept = counted.reshape(len(x), -1).expand_as(x)
        values = sorted_columns(torch.where(kept, x, torch.inf))
        return values.gather(0, ((kept.sum(0, keepdim=True) + 1) // 2 - 1).clamp(min=0))[0]
    values, order = x.sort(dim=0)
    cumulative = exact(weight.reshape(len(x), -1).expand_as(x).gather(0, order)).cumsum(0)
    return values.gather(0, (cumulative >= cumulative[-1] / 2).int().argmax(0, keepdim=True))[0]
