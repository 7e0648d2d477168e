"""What rows are read from: one interface to all kinds of files, found by the end of their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Union

import numpy as np
from torch import Tensor

from tmixture.data.ahead import ahead

Place = Union[str, "os.PathLike[str]"]
Block = np.ndarray | Tensor


class Rows:
    """N rows of d numbers that are read a block at a time, whatever they take in memory; `fit` and `predict` take them.

    Attributes:
        place: where they are, for messages.
        shape: (N, d).
    """

    place: str
    shape: tuple[int, int]
    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.place!r}, shape={self.shape})"

    def blocks(self, size: int) -> Iterator[Block]:
        """One pass over all rows, in their order, in blocks (n, d) of about `size` rows."""
        raise NotImplementedError

    def column(self, name: str) -> np.ndarray:
        """Another column (N,), such as weights, labels or ids.

        Raises:
            ValueError: there is none of this name.
        """
        raise ValueError(f"{self.place} has no column {name!r} beside its rows")


Opener = Callable[[str, str | Sequence[str] | None], Rows | Block]
OPENERS: dict[str, Opener] = {}
# Where the openers of some suffixes are, so that a library is imported when one of its files is opened.
MODULES = {
    **dict.fromkeys((".npy", ".npz", ".safetensors"), "numbers_in_files"),
    **dict.fromkeys((".parquet", ".pq", ".arrow", ".feather", ".ipc"), "arrow"),
    ".zarr": "zarr",
}


def opens(*suffixes: str) -> Callable[[Opener], Opener]:
    """Register what opens files whose names end in one of these: `opener(place, columns)`."""

    def register(opener: Opener) -> Opener:
        OPENERS.update(dict.fromkeys(suffixes, opener))
        return opener

    return register


def suffixes() -> tuple[str, ...]:
    """The ends of the names of files that can be opened."""
    return tuple(dict.fromkeys((*MODULES, *OPENERS)))


def open_rows(place: Any, columns: str | Sequence[str] | None = None) -> Rows | Block:
    """Rows (N, d) of a file, by its path or URL, or of a Hugging Face data set; memory-mapped or read block by block.

    Args:
        place: a path or a URL of `fsspec` (`s3://…`, `https://…`, `memory://…`) of a file that ends in `.npy`, `.npz`,
            `.safetensors`, `.parquet`, `.arrow`, `.feather` or `.zarr`; or a `datasets.Dataset`.
        columns: which array of a file with names holds the rows; of tables one column of lists, or one column for each
            feature. Not needed where there is no choice.

    Raises:
        ValueError: it cannot be read, or does not hold rows of real numbers; the message names it.
    """
    if hasattr(place, "with_format"):
        if not (hasattr(place, "features") and hasattr(place, "__len__")):
            raise ValueError(
                f"data must be a datasets.Dataset, got {type(place).__name__}: choose a split of a DatasetDict, and "
                "give an IterableDataset through a DataLoader"
            )
        return import_module("tmixture.data.huggingface").HuggingFaceRows(place, columns)
    place = os.fspath(place)
    suffix = Path(place.rstrip("/")).suffix
    if suffix not in OPENERS:
        if suffix not in MODULES:
            what = "is a folder: give the files in it, which" if Path(place).is_dir() else "must"
            raise ValueError(f"{place} {what} end in one of {', '.join(suffixes())}")
        import_module(f"tmixture.data.{MODULES[suffix]}")
    rows = OPENERS[suffix](place, columns)
    if isinstance(rows, Rows):
        return rows
    is_real = not rows.dtype.is_complex if isinstance(rows, Tensor) else rows.dtype.kind in "fiub"
    if rows.ndim != 2 or not is_real:
        raise ValueError(
            f"{place} must hold real numbers of shape (N, d), got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows


def blocks_of(rows: Rows | Block, size: int) -> Iterator[Block]:
    """One pass over rows in blocks of about `size`; those of a file that is not mapped into memory are read ahead."""
    if isinstance(rows, Rows):
        return ahead(rows.blocks(size))
    return (rows[start : start + size] for start in range(0, n_rows(rows), size))


def n_rows(rows: Any) -> int:
    """N of something of shape (N, d), of which not every library says the length."""
    return len(rows) if hasattr(rows, "__len__") else int(rows.shape[0])


def is_remote(place: Place) -> bool:
    """Whether a place is a URL."""
    return "://" in os.fspath(place)


def needed(module: str) -> Any:
    """An optional library, or an error that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed for such data: pip install 'tmixture[data]'") from error
