"""Turns tensors, arrays, memory maps, `.npy` shards and loaders into device chunks of a fixed number of rows."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Union

import numpy as np
import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.arrays import as_array, as_tensor, check_dense, check_finite
from tmixture.data.shards import Shards
from tmixture.data.sources import Rows, blocks_of, n_rows, open_rows
from tmixture.numerics import SUM_ROWS, exact

Data = Union[Tensor, np.ndarray, Rows, str, "os.PathLike[str]", Iterable[Any]]
"""Rows to learn from; see `Chunks` for what is accepted."""

# Elements of one chunk-sized temporary: 32 MB in float32, or 16 MB where it should stay in a CPU's caches.
CHUNK_ELEMENTS = 2**23
CACHED_ELEMENTS = 2**22
# On a GPU the chunk-sized temporaries of an E-step, about so many, may take this share of the free memory.
TEMPORARIES, MEMORY_SHARE = 12, 0.25
LARGEST_CHUNK = 2**18

# A row whose weight is less than this share of the largest has none: in float32 it would be lost at random.
NEGLIGIBLE_WEIGHT = 1e-30
# Rows that differ by more than this, relative to their norm, are not the same row computed twice.
SAME = 1e-4
# Indices that a sampler must give twice.
COMPARED_INDICES = 1000


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of the data.

    Attributes:
        x: (n, d).
        weight: sample weights (n,) or None.
        responsibilities: given ones (n, K) or None.
        allowed: mask (n, K) of the components that a row may belong to, or None for all.
    """

    x: Tensor
    weight: Tensor | None = None
    responsibilities: Tensor | None = None
    allowed: Tensor | None = None

    def take(self, rows: Tensor) -> Chunk:
        """Some of the rows, by a mask (n,) or indices."""
        parts = (self.x, self.weight, self.responsibilities, self.allowed)
        return Chunk(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]


class Chunks:
    """The data as chunks of `size` rows on one device, in the same order at every iteration; the first one checks them.

    Args:
        data: one of
            a tensor, an array or a memory map of shape (N, d);
            an array of another library, such as Zarr or h5py, of which slices are read;
            the path or URL of a file that `tmixture.data.open_rows` opens, or what it returns;
            a list or tuple of those, taken as shards of one data set;
            an iterable of batches that can be iterated again, such as a `DataLoader`; a batch is a tensor or array
            (n, d), or a tuple or list whose first item is.
        n_features: d.
        device: where the chunks go.
        size: rows in a chunk; the last one may have fewer.
        sample_weight: (N,), not negative, in the order of the rows; chunks carry them over `weight_unit`.
        responsibilities: labels (N,) or responsibilities (N, K), in the order of the rows.
        labels: known classes (N,), −1 where unknown, or a mask (N, K) of allowed components; in the order of the rows.
        component_labels: (K,), the class of each component.
        n_components: K, to check the responsibilities against.
        in_order: whether something else is kept for each row, so that the rows must keep their order.
        shared: whether other processes have rows, too, with weights in the same unit.
        may_be_empty: whether no rows at all are fine: there is one chunk without rows then.
        allow_missing: whether a value may be missing, which NaN says.
    """

    shards: list[Any] | Iterable[Any]
    weight_unit: float
    responsibilities: Tensor | None
    component_labels: Tensor
    labels: Tensor | None
    in_order: bool

    def __init__(
        self,
        data: Data,
        n_features: int,
        device: torch.device,
        size: int,
        *,
        sample_weight: Tensor | np.ndarray | None = None,
        responsibilities: Tensor | np.ndarray | None = None,
        labels: Tensor | np.ndarray | None = None,
        component_labels: Tensor | None = None,
        n_components: int = 1,
        in_order: bool = False,
        shared: bool = False,
        may_be_empty: bool = False,
        allow_missing: bool = False,
    ) -> None:
        self.allow_missing = allow_missing
        self.may_be_empty = may_be_empty
        self.shards = _open_shards(data)
        self.n_features = n_features
        self.device = device
        self.size = size
        self.weights: Tensor | None = None
        self.weight_unit = 1.0
        if sample_weight is not None:  # as they are, float32 may not hold them
            weights = _check_weights(sample_weight)
            self.weight_unit = unit_of(weights, shared=shared)
            self.weights = weights / self.weight_unit
            self.weights[self.weights < NEGLIGIBLE_WEIGHT] = 0
        self.responsibilities = (
            None if responsibilities is None else _check_responsibilities(responsibilities, n_components)
        )
        self.component_labels = torch.arange(n_components) if component_labels is None else component_labels.cpu()
        self.labels = None if labels is None else _check_labels(labels, self.component_labels)
        self.n_components = n_components
        self.rows: int | None = None  # known after the first pass
        self.in_order = in_order or any(part is not None for part in (sample_weight, responsibilities, labels))
        self.first_rows: list[Tensor] = []  # of the chunks of a loader that must keep their order
        if self.in_order and _shuffles(data):
            raise ValueError(
                "data is a DataLoader that brings its rows in another order every time: sample_weight, labels, "
                "responsibilities and what max_candidates remembers of each row cannot be matched to them: use them "
                "with a loader that keeps the order (shuffle=False)"
            )
        if isinstance(self.shards, list):
            self._check_lengths(self.n_rows or 0)

    @property
    def n_rows(self) -> int | None:
        """N, where it is known before the rows are read."""
        if isinstance(self.shards, list):
            return sum(map(n_rows, self.shards))
        return len(self.shards) if isinstance(self.shards, Shards) else self.rows

    def __iter__(self) -> Iterator[Chunk]:
        start = 0
        for number, x in enumerate(self._regrouped()):
            stop = start + len(x)
            if self.rows is not None and stop > self.rows:
                raise ValueError(self._inconstant(f"at least {stop}"))
            if self.in_order and not isinstance(self.shards, list):
                self._check_order(number, x[0], start)
            weight = responsibilities = None
            if self.weights is not None:
                weight = self.weights[start:stop].to(self.device)
            if self.responsibilities is not None:
                responsibilities = self.responsibilities[start:stop].to(self.device)
                if responsibilities.dim() == 1:
                    responsibilities = torch.nn.functional.one_hot(responsibilities, self.n_components)
            allowed = None if self.labels is None else self._allowed(self.labels[start:stop])
            x = x.to(self.device, non_blocking=True)
            if self.rows is None:  # what was finite at the first pass is so at the others
                check_finite(x, start, "data", allow_missing=self.allow_missing)
            yield Chunk(x, weight, responsibilities, allowed)
            start = stop
        self._check_lengths(start)
        if self.rows is not None and start != self.rows:
            raise ValueError(self._inconstant(str(start)))
        self.rows = start
        if start == 0:
            if not self.may_be_empty:
                raise ValueError("data is empty: at least one row is needed")
            yield Chunk(torch.empty(0, self.n_features, device=self.device))

    def _allowed(self, labels: Tensor) -> Tensor | None:
        """The mask (n, K) for rows with these labels, or this mask; None if it says nothing."""
        if labels.dim() == 1:
            if not (labels >= 0).any():
                return None
            labels = (labels[:, None] < 0) | (labels[:, None] == self.component_labels)
        return labels.to(self.device)

    def _inconstant(self, now: str) -> str:
        return f"data must bring the same rows at every iteration, but it had {self.rows} rows first and {now} now"

    def _check_order(self, number: int, first_row: Tensor, index: int) -> None:
        """Raise a `ValueError` if the chunk of this number does not begin as it did at the first pass."""
        first_row = exact(first_row)
        if len(self.first_rows) == number:
            self.first_rows.append(first_row.clone())
        elif (first_row - self.first_rows[number]).norm() > SAME * self.first_rows[number].norm():
            raise ValueError(
                "data must bring its rows in the same order at every iteration, where sample_weight, labels, "
                f"responsibilities or max_candidates are given, but row {index} is not what it was at the first"
            )

    def _check_lengths(self, rows: int) -> None:
        given = {"sample_weight": self.weights, "responsibilities": self.responsibilities, "labels": self.labels}
        for name, values in given.items():
            if values is not None and len(values) != rows:
                raise ValueError(f"{name} has {len(values)} entries, but the data has {rows} rows")

    def _pieces(self) -> Iterator[Tensor]:
        """Blocks of at most `size` rows, as they come."""
        for shard in self.shards:
            batch = shard[0] if isinstance(shard, (tuple, list)) else shard
            _check_rows(batch, self.n_features)
            for block in blocks_of(batch, self.size):
                block = block if isinstance(block, (Tensor, np.ndarray)) else np.asarray(block)
                yield as_tensor(block, "data").detach()

    def _regrouped(self) -> Iterator[Tensor]:
        """The pieces joined to exactly `size` rows, so that results do not depend on how the data is stored."""
        waiting: list[Tensor] = []
        count = 0
        for piece in self._pieces():
            waiting.append(piece)
            count += len(piece)
            if count >= self.size:
                joined = _joined(waiting)
                yield joined[: self.size]
                waiting = [joined[self.size :]] if count > self.size else []
                count -= self.size
        if count:
            yield _joined(waiting)


def _joined(pieces: list[Tensor]) -> Tensor:
    """The rows of all pieces, which are not copied where there is one."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def chunk_size(n_components: int, n_features: int, *, cached: bool = False) -> int:
    """Rows per chunk such that (n, d) and (n, K) temporaries stay near 32 MB, or in a CPU's caches."""
    width = max(n_components, n_features)
    size = max(256, min(16384, CHUNK_ELEMENTS // width))
    if not cached:
        return size
    # What a row takes: itself and its squares, and about four temporaries of a number for each component.
    rows = CACHED_ELEMENTS // 2 // (2 * n_features + 4 * n_components)
    return min(size, max(SUM_ROWS, rows - rows % SUM_ROWS))


def fitting_chunk_size(n_components: int, n_features: int, device: torch.device, *, matrices: bool) -> int:
    """Rows per chunk of a fit; `matrices` says whether each chunk updates K matrices."""
    if device.type == "cuda":
        return gpu_chunk_size(n_components, n_features, device)
    # Small on a CPU, but where chunks update K matrices, it is better to do so less often.
    return chunk_size(n_components, n_features, cached=device.type == "cpu" and not matrices)


def gpu_chunk_size(n_components: int, n_features: int, device: torch.device) -> int:
    """Rows per chunk that a GPU has memory for: fewer launches of kernels, and the same result but for rounding.

    A power of two, so that little more or less free memory leaves the chunks, and the last digits, as they are.
    """
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    row = 4 * TEMPORARIES * max(n_components, 2 * n_features)
    rows = min(max(256, int(MEMORY_SHARE * free) // row), LARGEST_CHUNK)
    return 1 << (rows.bit_length() - 1)


def _open_shards(data: Data) -> list[Any] | Iterable[Any]:
    check_dense(data, "data")
    if hasattr(data, "with_format"):
        data = open_rows(data)
    if isinstance(data, (str, os.PathLike)):
        data = [data]
    if is_array(data):
        return [data]
    if hasattr(data, "__array__") and not isinstance(data, (list, tuple)):
        return [np.asarray(data)]
    if isinstance(data, (list, tuple)):
        if all(isinstance(shard, (str, os.PathLike)) for shard in data):
            return [open_rows(shard) for shard in data]
        if all(hasattr(shard, "ndim") and shard.ndim == 2 for shard in data):
            return list(data)
        return [as_array(data, "data")]
    if not isinstance(data, Iterable):
        raise ValueError(
            "data must be a tensor, an array, the path of a file, a list of those, or an iterable of batches; "
            f"got {type(data).__name__}"
        )
    if iter(data) is data:
        raise ValueError(
            "data can be iterated only once, but fitting passes over it many times: give a DataLoader, a list, or an "
            "object whose __iter__ starts afresh, or use partial_fit"
        )
    return data


def is_array(data: Any) -> bool:
    """Whether rows can be taken from it by slices: a tensor, an array of any library, or opened rows."""
    return isinstance(data, (Tensor, Rows)) or all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__"))


def _shuffles(data: Any) -> bool:
    """Whether a loader says by its sampler that its order is not that of its data set, or changes."""
    sampler = getattr(data, "batch_sampler", None) or getattr(data, "sampler", None)
    if sampler is None:
        return False
    inner = getattr(sampler, "sampler", sampler)
    one, other = (list(islice(iter(sampler), COMPARED_INDICES)) for _ in range(2))
    return one != other or getattr(inner, "shuffle", False) is True  # a DistributedSampler shuffles once an epoch


def _check_rows(batch: Any, n_features: int) -> None:
    check_dense(batch, "data")
    if not is_array(batch):
        raise ValueError(f"a batch of data must be a tensor or an array, got {type(batch).__name__}")
    shape, name = tuple(batch.shape), batch.place if isinstance(batch, Rows) else "data"
    if len(shape) != 2:
        hint = ""
        if len(shape) == 1:
            hint = "; one feature is x[:, None]" if n_features == 1 else "; one row is x[None]"
        raise ValueError(f"{name} must be two-dimensional (N, {n_features}), got shape {shape}{hint}")
    if shape[1] != n_features:
        raise ValueError(f"{name} has {shape[1]} features, but the mixture has n_features={n_features}")


def _check_weights(sample_weight: Any) -> Tensor:
    weights = as_tensor(sample_weight, "sample_weight").detach()
    if weights.dim() != 1:
        raise ValueError(f"sample_weight must be one-dimensional (N,), got shape {tuple(weights.shape)}")
    weights = exact(weights)
    bad = ~((weights >= 0) & weights.isfinite())
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"sample_weight must be finite and not negative, but entry {row} is {weights[row].item()}")
    return weights


def check_stream_weights(chunks: Chunks) -> None:
    """Raise a `ValueError` if a stream could not remember these weights beside others, in float32."""
    if not NEGLIGIBLE_WEIGHT < chunks.weight_unit < 1 / NEGLIGIBLE_WEIGHT:
        raise ValueError(
            f"sample_weight of a stream must have its largest value between {NEGLIGIBLE_WEIGHT:g} and "
            f"{1 / NEGLIGIBLE_WEIGHT:g}, got {float(chunks.weights.max()) * chunks.weight_unit:g}"  # type: ignore[union-attr]
        )


def unit_of(weights: Tensor, *, shared: bool = False) -> float:
    """The power of two in units of which the largest weight lies between 1 and 2; of all processes if `shared`."""
    largest = weights.max()[None] if len(weights) else weights.new_zeros(1)
    largest = distributed.gather_rows(largest).max() if shared else largest[0]
    return 2.0 ** (int(torch.frexp(largest).exponent) - 1) if largest > 0 else 1.0


def _check_labels(labels: Any, component_labels: Tensor) -> Tensor:
    """Known classes (N,) or a mask (N, K), on the host."""
    known = as_tensor(labels, "labels").detach().cpu()
    if known.dim() == 2 and known.dtype == torch.bool and known.shape[1] == len(component_labels):
        if not known.any(1).all():
            row = int((~known.any(1)).nonzero()[0])
            raise ValueError(f"labels must allow each row a component, but row {row} has none")
        return known
    if known.dim() != 1 or known.is_floating_point() or known.dtype == torch.bool:
        raise ValueError(
            f"labels must be integers (N,), with −1 for unknown, or a boolean mask (N, {len(component_labels)}), got "
            f"{known.dtype} of shape {tuple(known.shape)}"
        )
    strange = ~torch.isin(known, component_labels) & (known >= 0)
    if strange.any():
        row = int(strange.nonzero()[0])
        raise ValueError(f"labels must be classes of components, but row {row} has {int(known[row])}, which none has")
    return known.long()


def _check_responsibilities(responsibilities: Any, n_components: int) -> Tensor:
    given = as_tensor(responsibilities, "responsibilities").detach()
    if given.dim() == 1 and not given.is_floating_point():
        if given.numel() and not (int(given.min()) >= 0 and int(given.max()) < n_components):
            raise ValueError(
                f"labels must lie in 0 … {n_components - 1}, got values from {int(given.min())} to {int(given.max())}"
            )
        return given.long()
    if given.dim() != 2 or given.shape[1] != n_components:
        raise ValueError(
            f"responsibilities must be integer labels (N,) or of shape (N, {n_components}), got {given.dtype} of "
            f"shape {tuple(given.shape)}"
        )
    if not ((given >= 0) & given.isfinite()).all():
        raise ValueError("responsibilities must be finite and not negative")
    return given


def assembled(answers: Iterable[Any], n_rows: int | None) -> Any:
    """The answers (n, …) about chunks, or tuples of them, as one about N rows.

    If N is known, each goes to its place at once: kept beside the temporaries of the others, they would break up the
    memory, and the process would grow with the data.
    """
    if n_rows is None:
        several = list(answers)
        if isinstance(several[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*several))
        return torch.cat(several)
    whole: list[Tensor] = []
    start, is_tuple = 0, False
    for answer in answers:
        is_tuple = isinstance(answer, tuple)
        parts = answer if is_tuple else (answer,)
        whole = whole or [part.new_empty(n_rows, *part.shape[1:]) for part in parts]
        for all_rows, part in zip(whole, parts):
            all_rows[start : start + len(part)] = part
        start += len(parts[0])
    return tuple(whole) if is_tuple else whole[0]


class InChunks(Protocol):
    """What can ask a question of data of any size."""

    def in_chunks(self, question: Callable[[Tensor], Any], data: Data) -> Any:
        """The answers for all rows."""


P = ParamSpec("P")
Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=InChunks)


def of_any_size(
    question: Callable[Concatenate[Model, Tensor, P], Answer],
) -> Callable[Concatenate[Model, Data, P], Answer]:
    """Let a question about rows in a tensor also take whatever `fit` takes: one chunk at a time, without gradients."""

    @functools.wraps(question)
    def asked(self: Model, x: Data, *args: P.args, **settings: P.kwargs) -> Answer:
        if isinstance(x, Tensor):
            return question(self, x, *args, **settings)
        answer: Answer = self.in_chunks(lambda rows: question(self, rows, *args, **settings), x)
        return answer

    return asked
