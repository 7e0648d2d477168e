"""Fit a mixture with Spark: each partition is summed up where it lies, and only the sums travel.

    spark-submit examples/spark_fit.py embeddings/ --column embedding --components 40 --output mixture.safetensors

A task that is lost runs again, and counts once. tmixture has to be installed where the executors run.
Needs the extra `spark`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import reduce
from operator import add
from typing import Any

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from tmixture import StudentTMixture
from tmixture.data.arrow import as_rows
from tmixture.mapreduce import MapReduceFit, Summary
from tmixture.reservoir import Reservoir


def total(data: DataFrame, column: str, task: Any, kind: Any, *, numbered: bool = False) -> Any:
    """The sum of what a task says of all partitions, one after the other batch of each."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        number = {"part": TaskContext.get().partitionId()} if numbered else {}
        sums = [task(as_rows(batch, [column], "the partition", None), **number) for batch in batches if len(batch)]
        if sums:
            yield pa.RecordBatch.from_arrays([pa.array([reduce(add, sums).to_bytes()], pa.binary())], ["sums"])

    found = data.select(column).mapInArrow(run, "sums binary").collect()
    return reduce(add, (kind.from_bytes(bytes(row.sums)) for row in found))


def fit(data: DataFrame, mixture: StudentTMixture, column: str) -> StudentTMixture:
    """Fit a mixture to a column of lists; `data.cache()` spares reading it in every iteration."""
    fitting = MapReduceFit(mixture)
    fitting.begin(total(data, column, fitting.draw, Reservoir, numbered=True))
    while not fitting.is_over:
        fitting.update(total(data, column, fitting.summarize, Summary))
        print(f"iteration {mixture.n_iter_}: mean log-likelihood {mixture.history_[-1]:.6f}")
    return mixture


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--column", default="embedding")
    parser.add_argument("--components", type=int, default=40)
    parser.add_argument("--output", default="mixture.safetensors")
    arguments = parser.parse_args()
    spark = SparkSession.builder.appName("tmixture").getOrCreate()
    data = spark.read.parquet(arguments.folder).cache()
    mixture = StudentTMixture(arguments.components, len(data.first()[arguments.column]), generator=0)
    fit(data, mixture, arguments.column).save(arguments.output)
    spark.stop()


if __name__ == "__main__":
    main()
