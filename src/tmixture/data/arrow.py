"""Parquet and Arrow (Feather) files, local or at a URL, through pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tmixture.data.sources import Rows, is_remote, needed, opens


@opens(".parquet", ".pq", ".arrow", ".feather", ".ipc")
def open_table(place: str, columns: str | Sequence[str] | None) -> Rows:
    """The rows of a table."""
    return ArrowRows(place, columns)


class ArrowRows(Rows):
    """The rows of a Parquet or Arrow file, of which no more than a row group or a record batch is held.

    Args:
        place: a path or a URL.
        columns: one of lists, or one for each feature; not needed where one alone has lists, or all have numbers.
    """

    columns: list[str]
    names: list[str]
    shape: tuple[int, int]

    def __init__(self, place: str, columns: str | Sequence[str] | None = None) -> None:
        self.place = place
        with self._reader() as reader:
            self.names, n = reader.schema.names, reader.n_rows()
            self.columns = chosen_columns(reader.schema, columns, place)
            first = next(reader.batches(1, self.columns), None)
            kind = reader.schema.field(self.columns[0]).type
        width = getattr(kind, "list_size", len(self.columns))  # what an empty table says of it
        if first is not None and len(first):
            width = as_rows(first.slice(0, 1), self.columns, place, None).shape[1]
        self.shape = (n, width)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as its place: the rows stay where they are."""
        return ArrowRows, (self.place, self.columns[0] if len(self.columns) == 1 else self.columns)

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """One pass over all rows, in blocks (n, d) of at most `size` rows."""
        start = 0
        for table in self.tables(size, self.columns):
            yield as_rows(table, self.columns, self.place, self.shape[1], start)
            start += len(table)
        if start != len(self):
            raise ValueError(f"{self.place} had {len(self)} rows when it was opened, and {start} now")

    def tables(self, size: int, columns: Sequence[str]) -> Iterator[Any]:
        """One pass over some columns, in record batches of at most `size` rows."""
        missing = [name for name in columns if name not in self.names]
        if missing:
            raise ValueError(f"{self.place} has no column {missing[0]!r}, but {', '.join(self.names)}")
        with self._reader() as reader:
            for batch in reader.batches(size, columns):
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)

    def column(self, name: str) -> np.ndarray:
        """Another column (N,), such as weights, labels or ids."""
        parts = [table.column(name).to_numpy(zero_copy_only=False) for table in self.tables(len(self) or 1, [name])]
        return np.concatenate(parts)

    @contextmanager
    def _reader(self) -> Iterator[ParquetReader | ArrowReader]:
        is_parquet = self.place.endswith((".parquet", ".pq"))
        with readable(self.place):
            if is_remote(self.place):
                source = needed("fsspec").open(self.place, "rb")
            else:
                source = (needed("pyarrow").OSFile if is_parquet else needed("pyarrow").memory_map)(self.place)
            with source as file:
                yield ParquetReader(file) if is_parquet else ArrowReader(file)


class ParquetReader:
    """Reads a Parquet file, one row group after the other."""

    schema: Any

    def __init__(self, file: Any) -> None:
        # With pre_buffer, all that will be read would be held.
        self._file = needed("pyarrow.parquet").ParquetFile(file, pre_buffer=False)
        self.schema = self._file.schema_arrow

    def n_rows(self) -> int:
        """N."""
        return int(self._file.metadata.num_rows)

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Any]:
        """Record batches of at most `size` rows."""
        return iter(self._file.iter_batches(size, columns=list(columns), use_threads=False))


class ArrowReader:
    """Reads an Arrow (Feather) file, one record batch after the other."""

    schema: Any

    def __init__(self, file: Any) -> None:
        self._file = needed("pyarrow").ipc.open_file(file)
        self.schema = self._file.schema

    def n_rows(self) -> int:
        """N."""
        return sum(self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches))

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Any]:
        """The record batches as they are."""
        return (self._file.get_batch(i).select(list(columns)) for i in range(self._file.num_record_batches))


@contextmanager
def readable(place: str) -> Iterator[None]:
    """A block whose errors name the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place} does not exist") from error
    except (OSError, ValueError) as error:  # those of pyarrow are of these kinds
        if str(error).startswith(os.fspath(place)):
            raise
        raise ValueError(f"{place} cannot be read: {error}") from error


def chosen_columns(schema: Any, columns: str | Sequence[str] | None, place: str) -> list[str]:
    """The names of the columns that hold the rows: those that are given, or the only ones that can."""
    types = needed("pyarrow").types
    of_lists = [field.name for field in schema if is_list(field.type)]
    if columns is None:
        numbers = [f.name for f in schema if types.is_floating(f.type) or types.is_integer(f.type)]
        columns = of_lists if len(of_lists) == 1 else numbers
        if len(of_lists) > 1 or not columns or (not of_lists and len(numbers) < len(schema)):
            raise ValueError(
                f"{place} has columns {', '.join(schema.names)}: say by columns (--name) which are the rows"
            )
    names = [columns] if isinstance(columns, str) else list(columns)
    missing = [name for name in names if name not in schema.names]
    if missing or not names:
        raise ValueError(f"{place} has no column {', '.join(missing)}, but {', '.join(schema.names)}")
    if len(names) > 1 and set(names) & set(of_lists):
        raise ValueError(f"{place}: columns must be one of lists, or several of numbers, got {', '.join(names)}")
    for name in names:
        kind = schema.field(name).type
        value = kind.value_type if is_list(kind) else kind
        if not (types.is_floating(value) or types.is_integer(value) or types.is_boolean(value)):
            raise ValueError(f"{place} must hold real numbers, but its column {name} holds {kind}")
    return names


def is_list(kind: Any) -> bool:
    """Whether a type of pyarrow is one of lists."""
    types = needed("pyarrow").types
    return types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)


def as_rows(table: Any, columns: Sequence[str], place: str, n_features: int | None, first: int = 0) -> np.ndarray:
    """The rows (n, d) of a table or record batch; `first` is the number of its first row."""
    parts = [table.column(name) for name in columns]
    parts = [part.combine_chunks() if hasattr(part, "combine_chunks") else part for part in parts]
    if not is_list(parts[0].type):
        return np.column_stack([part.to_numpy(zero_copy_only=False) for part in parts])
    (lists,) = parts
    if lists.null_count:
        row = int(np.flatnonzero(lists.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{place} has nothing in row {first + row} of column {columns[0]}")
    lengths = needed("pyarrow.compute").list_value_length(lists).to_numpy(zero_copy_only=False)
    width = n_features if n_features is not None else int(lengths[0]) if len(lengths) else 0
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != width)[0])
        raise ValueError(f"{place} has {lengths[row]} numbers in row {first + row}, and {width} in others")
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), width)


class TableWriter:
    """Writes a table of the kind of a file beside it, batch by batch.

    Args:
        path: of the table, local.
        kind: the suffix of the file that it belongs to.
    """

    path: str | os.PathLike[str]
    is_parquet: bool

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        self.path, self.is_parquet = path, kind in (".parquet", ".pq")
        self._writer: Any = None

    def write(self, columns: dict[str, Any]) -> None:
        """Add rows, of the same columns every time."""
        table = needed("pyarrow").table(columns)
        if self._writer is None:
            if self.is_parquet:
                self._writer = needed("pyarrow.parquet").ParquetWriter(self.path, table.schema)
            else:
                self._writer = needed("pyarrow").ipc.new_file(str(self.path), table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
