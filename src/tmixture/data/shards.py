"""The files of a data set: which there are, and their rows one block after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from torch import Tensor
from torch.nn.functional import normalize

from tmixture import files
from tmixture.data.arrays import as_tensor, check_finite
from tmixture.data.numbers_in_files import read_array
from tmixture.data.sources import MODULES, Place, blocks_of, is_remote, open_rows, suffixes
from tmixture.numerics import exact
from tmixture.progress import progress_bar

# What the command line writes beside shard.npy: shard.clusters.npy, and shard.clusters.json on how it was made.
CLUSTERS = ".clusters"
# Rows that are read at a time.
BLOCK_ROWS = 16384


class Shards:
    """The rows of several files, read a block at a time; `StudentTMixture.fit` takes it as it is.

    Args:
        paths: files, or their URLs.
        name: of the array in files of several, or of the columns of tables; not needed where there is no choice.
        n_features: width that the rows must have; that of the first file if None.
        title: of the progress bar; empty for none.
        normalize: whether to divide each row by its norm.
        allow_missing: whether NaN may stand for a value.

    Attributes:
        lengths: rows of each file.
        n_features: d.

    Raises:
        ValueError: a file cannot be read or does not hold rows of this width; or rows with gaps are to be normalised.
    """

    name: str | Sequence[str] | None
    normalize: bool
    paths: Sequence[Place]
    title: str
    n_features: int
    lengths: list[int]

    def __init__(
        self,
        paths: Sequence[Place],
        name: str | Sequence[str] | None = None,
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
            total=len(self),
            desc=self.title,
            unit=" rows",
            unit_scale=True,
            leave=False,
            disable=None if self.title else True,
        ) as bar:
            for path in self.paths:
                start = 0
                for rows in blocks_of(open_rows(path, self.name), BLOCK_ROWS):
                    block = as_tensor(rows, str(path))
                    if not self._is_checked:
                        check_finite(block, start, str(path), allow_missing=self.allow_missing)
                    yield normalize(exact(block), dim=1).float() if self.normalize else block
                    start += len(block)
                    bar.update(len(block))
        self._is_checked = True


def find(
    places: Sequence[str], pattern: str, name: str | Sequence[str] | None
) -> tuple[list[Place], list[tuple[Path, str]]]:
    """The files at the given places, of which folders stand for all the embeddings in them, in the order of names.

    Args:
        places: files, URLs of files, and folders.
        pattern: which names to take from folders.
        name: as for `Shards`.

    Returns:
        The files of embeddings, and the others of their kind in the folders, each with what it is instead.
    """
    found: list[Place] = []
    left_out: list[tuple[Path, str]] = []
    for place in map(str, places):
        path, kind = Path(place), suffix(place)
        if path.is_dir() and kind not in suffixes():
            kinds = {file: _what_else(file, name) for file in sorted(path.glob(pattern)) if _may_be_embeddings(file)}
            if not any(what is None for what in kinds.values()):
                raise ValueError(f"{place} holds no {', '.join(suffixes())} files of embeddings named {pattern}")
            found.extend(file for file, what in kinds.items() if what is None)
            left_out.extend((file, what) for file, what in kinds.items() if what is not None)
        elif not is_remote(place) and not path.exists():
            raise ValueError(f"{place} does not exist")
        elif kind not in suffixes():
            raise ValueError(f"{place} must be a folder or end in one of {', '.join(suffixes())}")
        elif kind == ".safetensors" and files.is_mixture(place):
            raise ValueError(f"{place} is a mixture and holds no embeddings")
        else:
            found.append(place if is_remote(place) else path)
    return found, left_out


def suffix(place: Place) -> str:
    """The end of the name of a file or of a URL."""
    return PurePosixPath(str(place)).suffix


def _may_be_embeddings(path: Path) -> bool:
    return path.suffix in suffixes() and not path.stem.endswith(CLUSTERS)


def _what_else(path: Path, name: str | Sequence[str] | None) -> str | None:
    """What a readable file in a folder holds instead of embeddings; None if it is them, or a table."""
    if path.suffix == ".safetensors" and files.is_mixture(path):
        return "it is a mixture"
    if MODULES.get(path.suffix) != "numbers_in_files":
        return None
    shape = tuple(read_array(path, name if isinstance(name, str) else None).shape)
    return None if len(shape) == 2 else f"it holds an array of shape {shape}"
