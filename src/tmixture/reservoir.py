"""A uniform sample of data that may only be read in chunks, or in parts that know nothing of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
        dtype = torch.promote_types(self.x.dtype, other.x.dtype)
        pairs = [(self.x.to(dtype), other.x.to(dtype)), (self.weight, other.weight), (self.key, other.key)]
        x, weight, key, part = (torch.cat(pair) for pair in (*pairs, (self.part, other.part)))
        return Reservoir(x, weight, key, part, self.rows + other.rows, self.size).shrunk()

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

    def shrunk(self) -> Reservoir:
        """The same with no more rows than may be kept: those with the largest keys, in the order they are in."""
        if len(self.key) <= self.size:
            return self
        index = self.key.topk(self.size).indices.sort().values
        kept = (self.x[index.to(self.x.device)], self.weight[index], self.key[index], self.part[index])
        return Reservoir(*kept, self.rows, self.size)

    def sample(self) -> Sample:
        """The rows in the order of their parts."""
        order = self.part.argsort(stable=True)
        x, weight = self.x[order.to(self.x.device)], self.weight[order].to(self.x)
        return Sample(x, weight if self.rows <= self.size else torch.ones_like(weight), self.rows)


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
    kept_x, kept_weight, kept_key = [], [], []
    rows = total = waiting = 0
    least = -math.inf  # no row with a smaller key can still be among the largest
    for chunk in chunks:
        check_finite(chunk.x, total, "data", allow_missing=allow_missing)
        total += len(chunk.x)
        weight = torch.ones(len(chunk.x)) if chunk.weight is None else chunk.weight.cpu()
        key = uniform(seed, first + total - len(chunk.x), len(chunk.x)).log() / weight
        positive = weight > 0
        rows += int(positive.sum())
        keep = (positive & (key > least)).nonzero()[:, 0]
        kept_x.append(chunk.x[keep.to(chunk.x.device)])
        kept_weight.append(weight[keep])
        kept_key.append(key[keep])
        waiting += len(keep)
        if waiting > 1.25 * size:
            kept_x, kept_weight, kept_key = _shrink(kept_x, kept_weight, kept_key, size)
            waiting, least = size, float(kept_key[0].min())
    if rows > size:
        kept_x, kept_weight, kept_key = _shrink(kept_x, kept_weight, kept_key, size)
    x, weight, key = torch.cat(kept_x), torch.cat(kept_weight), torch.cat(kept_key)
    x = x.to(torch.promote_types(x.dtype, dtype))
    return Reservoir(x, weight, key, torch.full((len(key),), part), rows, size)


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
    return _joined(drawn).sample() if shared else drawn.sample()


def _rows_before(chunks: Iterable[Chunk]) -> int:
    """The rows of all processes of lower rank; a place far from theirs where somebody does not know their number."""
    known = getattr(chunks, "n_rows", None)
    device = getattr(chunks, "device", torch.device("cpu"))
    counts = distributed.gather_rows(torch.tensor([-1 if known is None else known], device=device)).tolist()
    before = counts[: distributed.rank()]
    return sum(before) if min(counts) >= 0 else distributed.rank() * FAR_APART


def _joined(drawn: Reservoir) -> Reservoir:
    """Of the reservoirs of all processes that of all rows."""
    rows = int(distributed.gather_rows(torch.tensor([drawn.rows], device=drawn.x.device)).sum())
    x, weight = drawn.x, drawn.weight
    if rows > drawn.size:
        keys = distributed.gather_rows(drawn.key.to(x.device)).cpu()
        keep = drawn.key >= keys.topk(drawn.size).values[-1]
        x, weight = x[keep.to(x.device)], weight[keep]
    x, weight = distributed.gather_rows(x), distributed.gather_rows(weight.to(x)).cpu()
    return Reservoir(x, weight, torch.zeros(len(weight)), torch.zeros(len(weight)), rows, drawn.size)


def _shrink(
    x: list[Tensor], weight: list[Tensor], key: list[Tensor], size: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The `size` rows with the largest keys, in the order of the data."""
    keys = torch.cat(key)
    index = keys.topk(size).indices.sort().values
    rows = torch.cat(x)
    return [rows[index.to(rows.device)]], [torch.cat(weight)[index]], [keys[index]]
