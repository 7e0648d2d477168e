"""Zarr arrays, local or at a URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tmixture.data.sources import Rows, needed, opens


@opens(".zarr")
def open_zarr(place: str, columns: str | Sequence[str] | None) -> Rows:
    """The rows of an array, or of the array of that name in a group."""
    return ZarrRows(place, columns)


class ZarrRows(Rows):
    """The rows of a Zarr array, read in whole chunks of theirs.

    Args:
        place: a path or a URL.
        columns: which array of a group; not needed where there is one.
    """

    place: str
    name: str | Sequence[str] | None
    shape: tuple[int, int]

    def __init__(self, place: str, columns: str | Sequence[str] | None = None) -> None:
        self.place, self.name = place, columns
        try:
            found: Any = needed("zarr").open(place, mode="r")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place} does not exist, or is no Zarr array") from error
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{place} cannot be read: {error}") from error
        if not hasattr(found, "shape"):
            names = sorted(found.array_keys())
            name = names[0] if columns is None and len(names) == 1 else columns
            if name not in names:
                raise ValueError(f"{place} cannot be read: name one of its arrays (--name): {', '.join(names)}")
            found = found[name]
        if found.ndim != 2 or found.dtype.kind not in "fiub":
            raise ValueError(
                f"{place} must hold real numbers of shape (N, d), got {found.dtype} of shape {found.shape}"
            )
        self._array, self.shape = found, (int(found.shape[0]), int(found.shape[1]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its place."""
        return ZarrRows, (self.place, self.name)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """One pass over all rows, in blocks (n, d): a chunk that holds more is decoded once."""
        own = self._array.chunks[0]
        step = max(1, size // own) * own
        for start in range(0, len(self), step):
            rows = np.asarray(self._array[start : start + step])
            for first in range(0, len(rows), size):
                yield rows[first : first + size]
