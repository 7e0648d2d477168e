"""`.npy` files, memory-mapped or streamed from a URL, `.npz` and safetensors."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tmixture.data.sources import Block, Rows, is_remote, needed, opens


@opens(".npy", ".npz", ".safetensors")
def open_numbers(place: str, columns: str | Sequence[str] | None) -> Rows | Block:
    """The rows of a file, of which `.npz` alone is read whole into memory."""
    if columns is not None and not isinstance(columns, str):
        raise ValueError(f"columns must be the name of one array of {place}, got {columns!r}")
    if is_remote(place):
        if not place.endswith(".npy"):
            raise ValueError(f"{place} cannot be read from afar, as only .npy, .parquet, .arrow and .zarr can: copy it")
        return StreamedArray(place)
    return read_array(Path(place), columns)


def read_array(path: Path, name: str | None) -> np.ndarray | Tensor:
    """The array of a file, of whatever shape."""
    try:
        return np.lib.format.open_memmap(path, mode="r") if path.suffix == ".npy" else _member(path, name)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _member(path: Path, name: str | None) -> np.ndarray | Tensor:
    """The array of that name, or the only one, in a file of named arrays."""
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive of arrays")
    archive: Any = np.load(path) if path.suffix == ".npz" else safe_open(path, framework="pt")
    with archive as file:
        names = list(file.keys())
        chosen = names[0] if name is None and len(names) == 1 else name
        if chosen not in names:
            raise ValueError(f"name one of its arrays (--name): {', '.join(names) or 'it has none'}")
        if path.suffix != ".npz":
            return file.get_tensor(chosen)
        try:
            return file[chosen]
        except ValueError as error:  # NumPy advises to unpickle
            raise ValueError(f"its array {chosen} does not hold numbers") from error


class StreamedArray(Rows):
    """The rows of a `.npy` file at a URL, read from its beginning to its end.

    Args:
        place: the URL.
    """

    dtype: np.dtype[Any]

    def __init__(self, place: str) -> None:
        self.place = place
        try:
            with self._opened() as file:
                version = np.lib.format.read_magic(file)
                read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, is_fortran, self.dtype = read(file)
                self._offset = file.tell()
        except FileNotFoundError:
            raise
        except (OSError, EOFError, ValueError, AttributeError) as error:
            raise ValueError(f"{place} cannot be read: {error}") from error
        if len(shape) != 2 or self.dtype.kind not in "fiub":
            raise ValueError(f"{place} must hold real numbers of shape (N, d), got {self.dtype} of shape {shape}")
        if is_fortran:
            raise ValueError(f"{place} holds one column after the other, which cannot be streamed: copy it")
        self.shape = shape

    def _opened(self) -> Any:
        return needed("fsspec").open(self.place, "rb")

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """One pass over all rows, in blocks (n, d)."""
        row = self.dtype.itemsize * self.shape[1]
        with self._opened() as file:
            file.seek(self._offset)
            for start in range(0, len(self), size):
                n = min(size, len(self) - start)
                content = file.read(n * row)
                if len(content) != n * row:
                    raise ValueError(f"{self.place} cannot be read: it ends in row {start + len(content) // row}")
                yield np.frombuffer(content, self.dtype).reshape(n, self.shape[1])
