"""Fit a mixture with Dask: each worker sums up files, and only the sums travel.

    python examples/dask_fit.py embeddings/*.parquet --columns embedding --components 40 --output mixture.safetensors

Files are Parquet, Arrow, Zarr or .npy, local or at URLs that every worker can read. A file whose worker is lost is
summed up again by another, and counts once. Needs the extra `dask`.
"""

from __future__ import annotations

import argparse
from typing import Any

from dask.distributed import Client, as_completed

from tmixture import StudentTMixture
from tmixture.data import open_rows
from tmixture.mapreduce import MapReduceFit


def run(task: Any, place: str, columns: str | None, settings: dict[str, Any]) -> Any:
    """What a task says of a file, on a worker."""
    return task(open_rows(place, columns), **settings)


def total(client: Client, task: Any, places: list[str], columns: str | None, *, numbered: bool = False) -> Any:
    """The sum of what a task says of all files, added up as they arrive."""
    sent = client.submit(lambda: task, pure=False)  # sent once, and again to workers that come later
    numbers = [{"part": i} if numbered else {} for i in range(len(places))]
    futures = client.map(run, [sent] * len(places), places, [columns] * len(places), numbers, retries=3, pure=False)
    whole = None
    for _, part in as_completed(futures, with_results=True):
        whole = part if whole is None else whole + part
    return whole


def fit(client: Client, mixture: StudentTMixture, places: list[str], columns: str | None = None) -> StudentTMixture:
    """Fit a mixture to the rows of all files."""
    fitting = MapReduceFit(mixture)
    fitting.begin(total(client, fitting.draw, places, columns, numbered=True))
    while not fitting.is_over:
        fitting.update(total(client, fitting.summarize, places, columns))
        print(f"iteration {mixture.n_iter_}: mean log-likelihood {mixture.history_[-1]:.6f}")
    return mixture


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+")
    parser.add_argument("--columns", help="that hold the rows")
    parser.add_argument("--components", type=int, default=40)
    parser.add_argument("--scheduler", help="address; without it the workers are processes of this machine")
    parser.add_argument("--output", default="mixture.safetensors")
    arguments = parser.parse_args()
    n_features = open_rows(arguments.places[0], arguments.columns).shape[1]
    with Client(arguments.scheduler) as client:
        mixture = StudentTMixture(arguments.components, n_features, generator=0)
        fit(client, mixture, arguments.places, arguments.columns).save(arguments.output)


if __name__ == "__main__":
    main()
