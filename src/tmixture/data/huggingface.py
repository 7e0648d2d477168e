"""Data sets of Hugging Face's `datasets`, memory-mapped as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tmixture.data.arrow import as_rows, chosen_columns
from tmixture.data.sources import Rows


class HuggingFaceRows(Rows):
    """The rows of a column, or of several, of a `datasets.Dataset`.

    Args:
        dataset: of any format.
        columns: one of lists, or one for each feature; not needed where there is no choice.
    """

    place: str
    columns: list[str]
    shape: tuple[int, int]

    def __init__(self, dataset: Any, columns: str | Sequence[str] | None = None) -> None:
        self.place = f"the data set of columns {', '.join(dataset.column_names)}"
        self._dataset = dataset.with_format("arrow")
        schema = dataset.features.arrow_schema
        self.columns = chosen_columns(schema, columns, self.place)
        self.shape = (len(dataset), 0)
        if len(dataset):
            first = self._dataset.select_columns(self.columns)[:1]
            self.shape = (len(dataset), as_rows(first, self.columns, self.place, None).shape[1])

    def blocks(self, size: int) -> Iterator[np.ndarray]:
        """One pass over all rows, in blocks (n, d)."""
        start = 0
        for table in self._dataset.select_columns(self.columns).iter(batch_size=size):
            yield as_rows(table, self.columns, self.place, self.shape[1], start)
            start += len(table)

    def column(self, name: str) -> np.ndarray:
        """Another column (N,), such as weights, labels or ids."""
        if name not in self._dataset.column_names:
            raise ValueError(f"{self.place} has no column {name!r}")
        return self._dataset.select_columns([name])[:].column(name).to_numpy()
