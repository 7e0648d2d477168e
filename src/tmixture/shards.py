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
from torch.nn.functional import normalize

from tmixture import files
from tmixture.arrays import as_tensor, check_finite
from tmixture.numerics import exact
from tmixture.progress import progress_bar

NAMED = (".npz", ".safetensors")
SUFFIXES = (".npy", *NAMED)
# What the command line writes beside shard.npy: shard.clusters.npy, and shard.clusters.json on how it was made.
CLUSTERS = ".clusters.npy"
# Rows that are read at a time.
BLOCK_ROWS = 16384


class Shards:
    """The rows of several files, read a block at a time; `StudentTMixture.fit` takes it as it is.

    Args:
        paths: files.
        name: of the array in `.npz` and safetensors files; not needed where they hold only one.
        n_features: width that the rows must have; that of the first file if None.
        title: of the progress bar.
        normalize: whether to divide each row by its norm.
        allow_missing: whether NaN may stand for a value.

    Attributes:
        lengths: rows of each file.
        n_features: d.

    Raises:
        ValueError: a file cannot be read or does not hold rows of this width; or rows with gaps are to be normalised.
    """

    name: str | None
    normalize: bool
    paths: list[Path]
    title: str
    n_features: int
    lengths: list[int]

    def __init__(
        self,
        paths: list[Path],
        name: str | None = None,
        n_features: int | None = None,
        title: str = "rows",
        *,
        normalize: bool = False,
        allow_missing: bool = False,
    ) -> None:
        if normalize and allow_missing:
            raise ValueError("rows of which values are missing have no norm to be divided by")
        self.paths, self.name, self.title, self.normalize = paths, name, title, normalize
        self.allow_missing = allow_missing
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
        with progress_bar(
            total=len(self), desc=self.title, unit=" rows", unit_scale=True, leave=False, disable=None
        ) as bar:
            for path in self.paths:
                rows = open_rows(path, self.name)
                for start in range(0, len(rows), BLOCK_ROWS):
                    block = as_tensor(rows[start : start + BLOCK_ROWS], str(path))
                    if not self._is_checked:
                        check_finite(block, start, str(path), allow_missing=self.allow_missing)
                    yield normalize(exact(block), dim=1).float() if self.normalize else block
                    bar.update(len(block))
        self._is_checked = True


def find(places: list[Path], pattern: str, name: str | None) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files at the given places, of which folders stand for all the embeddings in them, in the order of names.

    Args:
        places: files and folders.
        pattern: which names to take from folders.
        name: as for `Shards`.

    Returns:
        The files of embeddings, and the others of their kind in the folders, each with what it is instead.
    """
    found: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    for place in places:
        if place.is_dir():
            kinds = {path: _what_else(path, name) for path in sorted(place.glob(pattern)) if _may_be_embeddings(path)}
            if not any(kind is None for kind in kinds.values()):
                raise ValueError(f"{place} holds no {', '.join(SUFFIXES)} files of embeddings named {pattern}")
            found.extend(path for path, kind in kinds.items() if kind is None)
            left_out.extend((path, kind) for path, kind in kinds.items() if kind is not None)
        elif not place.exists():
            raise ValueError(f"{place} does not exist")
        elif place.suffix not in SUFFIXES:
            raise ValueError(f"{place} must be a folder or end in one of {', '.join(SUFFIXES)}")
        elif place.suffix == ".safetensors" and files.is_mixture(place):
            raise ValueError(f"{place} is a mixture and holds no embeddings")
        else:
            found.append(place)
    return found, left_out


def _may_be_embeddings(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.endswith(CLUSTERS)


def _what_else(path: Path, name: str | None) -> str | None:
    """What a readable file in a folder holds instead of embeddings; None if it is them."""
    if path.suffix == ".safetensors" and files.is_mixture(path):
        return "it is a mixture"
    shape = tuple(_read(path, name).shape)
    return None if len(shape) == 2 else f"it holds an array of shape {shape}"


def open_rows(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray | Tensor:
    """The rows (n, d) of a file, of which `.npz` alone is read whole into memory.

    Args:
        path: a `.npy`, `.npz` or safetensors file.
        name: of the array in a file of named arrays; not needed where there is only one.

    Raises:
        ValueError: the file cannot be read, or does not hold rows of real numbers; the message names it.
    """
    path = Path(path)
    rows = _read(path, name)
    is_real = not rows.dtype.is_complex if isinstance(rows, Tensor) else rows.dtype.kind in "fiub"
    if rows.ndim != 2 or not is_real:
        raise ValueError(
            f"{path} must hold real numbers of shape (N, d), got {rows.dtype} of shape {tuple(rows.shape)}"
        )
    return rows


def _read(path: Path, name: str | None) -> np.ndarray | Tensor:
    """The array of a file, of whatever shape."""
    try:
        return _member(path, name) if path.suffix in NAMED else np.lib.format.open_memmap(path, mode="r")
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
