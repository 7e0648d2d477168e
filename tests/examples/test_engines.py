"""The examples with other engines, on local clusters of the real ones: each gives what `fit` gives.

Dask runs with the other tests. Ray and Spark, which are large, run where they are installed:

    pip install 'tmixture[ray,spark]' && python -m pytest tests/examples/test_engines.py
"""

import os
import sys

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.slow

D, K, STRUCTURES = 4, 3, ["full", "diag", "spherical", "tied", "tied_diag", "tied_spherical", "lowrank"]
generator = np.random.default_rng(0)
ROWS = (5 * generator.normal(size=(K, D))[generator.integers(K, size=900)] + generator.normal(size=(900, D))).astype(
    "f"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of unequal lengths, with ids."""
    folder = tmp_path_factory.mktemp("embeddings")
    for i, rows in enumerate(np.split(np.arange(900), [500, 510])):
        column = pa.FixedSizeListArray.from_arrays(ROWS[rows].ravel(), D)
        pq.write_table(pa.table({"id": rows, "embedding": column}), folder / f"{i}.parquet")
    return folder


def make(structure, max_iter=30):
    rank = {"rank": 2} if structure == "lowrank" else {}
    return StudentTMixture(K, D, covariance_type=structure, generator=0, max_iter=max_iter, **rank)


def check(found, structure, **settings):
    expected = make(structure, **settings).fit(ROWS)
    assert found.n_iter_ == expected.n_iter_
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, msg=name)


# ------------------------------------------------------------------ Dask


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("structure", STRUCTURES)
def test_dask(client, folder, structure):
    import dask_fit

    check(dask_fit.fit(client, make(structure), sorted(map(str, folder.iterdir())), "embedding"), structure)


def test_dask_counts_a_file_once_whose_worker_died(client, folder, tmp_path, monkeypatch):
    """The first time that a worker reads the second file, in the first and in a later pass, it is killed."""
    import dask_fit

    def dies(task, place, columns, settings, folder=str(tmp_path)):
        mark = os.path.join(folder, "part" if settings else "pass")
        if place.endswith("1.parquet") and not os.path.exists(mark):
            open(mark, "w").close()
            os._exit(1)
        from tmixture.data import open_rows

        return task(open_rows(place, columns), **settings)

    monkeypatch.setattr(dask_fit, "run", dies)
    check(dask_fit.fit(client, make("diag"), sorted(map(str, folder.iterdir())), "embedding"), "diag")
    assert {path.name for path in tmp_path.iterdir()} == {"part", "pass"}


# ------------------------------------------------------------------ Ray


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=4,
        object_store_memory=200 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
        ignore_reinit_error=True,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_ray(ray, folder, structure):
    import ray_fit

    data = ray.data.read_parquet(str(folder)).materialize()
    check(ray_fit.fit(data, make(structure, max_iter=2), "embedding", "id"), structure, max_iter=2)


# ------------------------------------------------------------------ Spark


@pytest.fixture(scope="module")
def spark():
    sql = pytest.importorskip("pyspark.sql")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "123").getOrCreate()
    yield spark
    spark.stop()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_spark(spark, folder, structure):
    import spark_fit

    # one file after the other, in partitions that begin within files
    data = spark.read.parquet(str(folder)).orderBy("id").repartitionByRange(4, "id")
    check(spark_fit.fit(data.sortWithinPartitions("id"), make(structure), "embedding"), structure)


# ------------------------------------------------------------------ all


@pytest.mark.parametrize("engine", ["dask", "ray", "spark"])
def test_examples_are_short(engine):
    source = os.path.join(os.path.dirname(__file__), "..", "..", "examples", f"{engine}_fit.py")
    with open(source) as file:
        assert len(file.readlines()) < 80
