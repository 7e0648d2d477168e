"""Embeddings in files: `.npy` and safetensors, memory-mapped, and `.npz`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm.auto import tqdm

from tmixture.arrays import as_tensor, check_finite

NAMED = (".npz", ".safetensors")
SUFFIXES = (".npy", *NAMED)
# Rows that are read at a time.
BLOCK_ROWS = 16384


class Shards:
    """The rows of several files, read a block at a time; `StudentTMixture.fit` takes it as it is.

    Args:
        paths: files.
        name: of the array in `.npz` and safetensors files; not needed where they hold only one.
        n_features: width that the rows must have; that of the first file if None.
        title: of the progress bar.

    Attributes:
        lengths: rows of each file.
        n_features: d.

    Raises:
        ValueError: a file cannot be read or does not hold rows of this width.
    """

    def __init__(
        self, paths: list[Path], name: str | None = None, n_features: int | None = None, title: str = "rows"
    ) -> None:
        self.paths, self.name, self.title = paths, name, title
        shapes = [open_rows(path, name).shape for path in paths]
        self.n_features = int(shapes[0][1]) if n_features is None else n_features
        for path, (length, width) in zip(paths, shapes):
            if width != self.n_features or length == 0:
                raise ValueError(
                    f"{path} has shape ({length}, {width}): at least one row of {self.n_features} features is needed"
                )
        self.lengths = [int(length) for length, _ in shapes]
        self._is_checked = False

    def __len__(self) -> int:
        return sum(self.lengths)

    def __iter__(self) -> Iterator[Tensor]:
        """One pass over all rows, in blocks (n, d). The first pass checks that they are finite."""
        with tqdm(total=len(self), desc=self.title, unit=" rows", unit_scale=True, leave=False, disable=None) as bar:
            for path in self.paths:
                rows = open_rows(path, self.name)
                for start in range(0, len(rows), BLOCK_ROWS):
                    block = as_tensor(rows[start : start + BLOCK_ROWS], str(path))
                    if not self._is_checked:
                        check_finite(block, start, str(path))
                    yield block
                    bar.update(len(block))
        self._is_checked = True


def find(places: list[Path], leave_out: str) -> list[Path]:
    """The files at the given places, of which folders stand for all the embeddings in them, in the order of names.

    Args:
        places: files and folders.
        leave_out: ending of the names of files in a folder that are no embeddings.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and not p.name.endswith(leave_out))
            if not inside:
                raise ValueError(f"{place} holds no {', '.join(SUFFIXES)} files")
            found.extend(inside)
        elif not place.exists():
            raise ValueError(f"{place} does not exist")
        elif place.suffix not in SUFFIXES:
            raise ValueError(f"{place} must be a folder or end in one of {', '.join(SUFFIXES)}")
        else:
            found.append(place)
    return found


def open_rows(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray | Tensor:
    """The rows (n, d) of a file, of which `.npz` alone is read whole into memory.

    Args:
        path: a `.npy`, `.npz` or safetensors file.
        name: of the array in a file of named arrays; not needed where there is only one.

    Raises:
        ValueError: the file cannot be read, or does not hold rows of real numbers; the message names it.
    """
    path = Path(path)
    try:
        rows = _member(path, name) if path.suffix in NAMED else np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    is_real = not rows.dtype.is_complex if isinstance(rows, Tensor) else rows.dtype.kind in "fiub"
    if rows.ndim != 2 or not is_real:
        raise ValueError(
            f"{path} must hold real numbers of shape (N, d), got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows


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
