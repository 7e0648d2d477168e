"""A uniform sample of data that may only be read in chunks, or in parts that know nothing of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.arrays import check_finite
from tmixture.data.chunks import Chunk
from tmixture.files import packed, unpacked
from tmixture.sampling import Sample

# More rows than anybody has.
FAR_APART = 2**48


@dataclass(frozen=True)
class Reservoir:
    """A weighted random sample that can be drawn part by part: reservoirs of parts add up to one of all rows.

    Attributes:
        x: (m, d) rows, in their order within a part.
        weight: (m,), their sample weights.
        key: (m,), of which the largest stay.
        part: (m,), the number of the part that they come from.
        rows: number of rows with positive weight that were seen.
        size: most rows that are kept.
    """

    x: Tensor
    weight: Tensor
    key: Tensor
    part: Tensor
    rows: int
    size: int

    def __add__(self, other: Reservoir) -> Reservoir:
        """That of the rows of both."""
        if not isinstance(other, Reservoir):
            return NotImplemented
        if other.size != self.size or other.x.shape[1] != self.x.shape[1]:
            raise ValueError(
                f"reservoirs must be alike, got {self.size} and {other.size} rows of {self.x.shape[1]} and "
                f"{other.x.shape[1]} features"
            )
        return joined([self, other])

    def __reduce__(self) -> tuple[Callable[[bytes], Reservoir], tuple[bytes]]:
        """Pickled as bytes of safetensors."""
        return Reservoir.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = {name: getattr(self, name) for name in ("x", "weight", "key", "part")}
        return packed("Reservoir", tensors, rows=self.rows, size=self.size)

    @classmethod
    def from_bytes(cls, content: bytes) -> Reservoir:
        """What `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or of another version.
        """
        tensors, header = unpacked("Reservoir", content)
        return cls(**tensors, rows=header["rows"], size=header["size"])

    def take(self, index: Tensor) -> Reservoir:
        """Some of the rows, by indices in their order."""
        kept = (self.x[index.to(self.x.device)], self.weight[index], self.key[index], self.part[index])
        return Reservoir(*kept, self.rows, self.size)

    def sample(self) -> Sample:
        """The rows in the order of their parts."""
        order = self.part.argsort(stable=True)
        x, weight = self.x[order.to(self.x.device)], self.weight[order].to(self.x)
        return Sample(x, weight if self.rows <= self.size else torch.ones_like(weight), self.rows)


def joined(parts: Sequence[Reservoir]) -> Reservoir:
    """That of the rows of all: those with the largest keys, in the order they are in."""
    columns = zip(*((part.x, part.weight, part.key, part.part) for part in parts))
    x, weight, key, part = map(torch.cat, columns)
    whole = Reservoir(x, weight, key, part, sum(part.rows for part in parts), parts[0].size)
    if len(whole.key) <= whole.size:
        return whole
    return whole.take(whole.key.topk(whole.size).indices.sort().values)


def draw_reservoir(
    chunks: Iterable[Chunk],
    size: int,
    dtype: torch.dtype,
    seed: int,
    *,
    first: int = 0,
    part: int = 0,
    allow_missing: bool = False,
) -> Reservoir:
    """Pass over the data once: check every value, count the rows, keep a weighted reservoir of `size` rows.

    Rows are kept by the largest keys u^(1/weight) (Efraimidis & Spirakis 2006), so a row is drawn in proportion to its
    weight and the data may have any length. The random numbers depend on the places of the rows alone, of which these
    begin at `first`: not on chunks, nor on how many processes share the data.
    """
    kept: list[Reservoir] = []
    total = waiting = 0
    least = -math.inf  # no row with a smaller key can still be among the largest
    for chunk in chunks:
        check_finite(chunk.x, total, "data", allow_missing=allow_missing)
        total += len(chunk.x)
        weight = torch.ones(len(chunk.x)) if chunk.weight is None else chunk.weight.cpu()
        key = uniform(seed, first + total - len(chunk.x), len(chunk.x)).log() / weight
        positive = weight > 0
        here = Reservoir(chunk.x, weight, key, torch.full((len(key),), part), int(positive.sum()), size)
        kept.append(here.take((positive & (key > least)).nonzero()[:, 0]))
        waiting += len(kept[-1].key)
        if waiting > 1.25 * size:
            kept = [joined(kept)]
            waiting, least = size, float(kept[0].key.min())
    drawn = joined(kept)
    return replace(drawn, x=drawn.x.to(torch.promote_types(drawn.x.dtype, dtype)))


def uniform(seed: int, first: int, n: int) -> Tensor:
    """Random numbers in [0, 1) of n places, from the place `first` on: (n,), in float64."""
    bits = np.random.Philox(key=seed)
    bits.advance(first // 4)  # it makes four at a time
    numbers = np.random.Generator(bits)
    numbers.random(first % 4)
    return torch.from_numpy(numbers.random(n))


def draw_sample(
    chunks: Iterable[Chunk],
    size: int,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    *,
    shared: bool = False,
    allow_missing: bool = False,
) -> Sample:
    """A sample of the data by `draw_reservoir`.

    Args:
        chunks: the data.
        size: of the sample.
        dtype: of the sampled rows, unless the data needs a wider one.
        generator: source of randomness.
        shared: whether the sample is of the rows of all processes, and the same in all of them.
        allow_missing: whether values may be missing.

    Raises:
        ValueError: a value is not finite; the message names its row.
    """
    # Numbers of their own: what is drawn after the pass must not depend on how many rows there were.
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    first = _rows_before(chunks) if shared else 0
    drawn = draw_reservoir(chunks, size, dtype, seed, first=first, allow_missing=allow_missing)
    return _of_all_processes(drawn).sample() if shared else drawn.sample()


def _rows_before(chunks: Iterable[Chunk]) -> int:
    """The rows of all processes of lower rank; a place far from theirs where somebody does not know their number."""
    known = getattr(chunks, "n_rows", None)
    device = getattr(chunks, "device", torch.device("cpu"))
    counts = distributed.gather_rows(torch.tensor([-1 if known is None else known], device=device)).tolist()
    before = counts[: distributed.rank()]
    return sum(before) if min(counts) >= 0 else distributed.rank() * FAR_APART


def _of_all_processes(drawn: Reservoir) -> Reservoir:
    """Of the reservoirs of all processes that of all rows."""
    rows = int(distributed.gather_rows(torch.tensor([drawn.rows], device=drawn.x.device)).sum())
    x, weight = drawn.x, drawn.weight
    if rows > drawn.size:
        keys = distributed.gather_rows(drawn.key.to(x.device)).cpu()
        keep = drawn.key >= keys.topk(drawn.size).values[-1]
        x, weight = x[keep.to(x.device)], weight[keep]
    x, weight = distributed.gather_rows(x), distributed.gather_rows(weight.to(x)).cpu()
    return Reservoir(x, weight, torch.zeros(len(weight)), torch.zeros(len(weight)), rows, drawn.size)
