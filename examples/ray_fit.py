"""Fit a mixture with Ray Data: each batch is summed up where it lies, and only the sums travel.

    python examples/ray_fit.py embeddings/ --column embedding --components 40 --output mixture.safetensors

Rows come from whatever Ray Data reads; here from Parquet with a column of lists. A task that is lost runs again, and
counts once. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import ray

from tmixture import StudentTMixture
from tmixture.mapreduce import MapReduceFit, Summary
from tmixture.reservoir import Reservoir


def total(data: ray.data.Dataset, column: str, task: Any, kind: Any, first: str | None = None) -> Any:
    """The sum of what a task says of all batches; `first` is the column of ids that puts the parts in order."""
    sent = ray.put(task)

    def run(batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        number = {} if first is None else {"part": int(batch[first][0])}
        rows = np.stack(list(batch[column])).astype(np.float32)  # lists become arrays of arrays
        return {"part": [ray.get(sent)(rows, **number).to_bytes()]}

    parts = data.map_batches(run, batch_size=4096, batch_format="numpy").iter_rows()
    return reduce(add, (kind.from_bytes(row["part"]) for row in parts))


def fit(data: ray.data.Dataset, mixture: StudentTMixture, column: str, ids: str | None = None) -> StudentTMixture:
    """Fit a mixture to a column of lists.

    Args:
        data: any data set of Ray.
        mixture: to be fitted.
        column: of the rows.
        ids: a column of numbers that rise with the rows, for a start that does not depend on who comes first.
    """
    fitting = MapReduceFit(mixture)
    fitting.begin(total(data, column, fitting.draw, Reservoir, ids))
    while not fitting.is_over:
        fitting.update(total(data, column, fitting.summarize, Summary))
        print(f"iteration {mixture.n_iter_}: mean log-likelihood {mixture.history_[-1]:.6f}")
    return mixture


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--column", default="embedding")
    parser.add_argument("--ids", help="column of numbers that rise with the rows")
    parser.add_argument("--components", type=int, default=40)
    parser.add_argument("--output", default="mixture.safetensors")
    arguments = parser.parse_args()
    data = ray.data.read_parquet(arguments.folder)
    mixture = StudentTMixture(arguments.components, len(data.take(1)[0][arguments.column]), generator=0)
    fit(data, mixture, arguments.column, arguments.ids).save(arguments.output)


if __name__ == "__main__":
    main()
