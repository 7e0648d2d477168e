"""Rows where they lie: tables, arrays of other libraries, URLs. Whatever they are read from, a fit is the same."""

import http.server
import json
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture
from tmixture.cli import main
from tmixture.data import Rows, open_rows, opens, sources
from tmixture.data.ahead import ahead

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")
datasets = pytest.importorskip("datasets")
zarr = pytest.importorskip("zarr")
fsspec = pytest.importorskip("fsspec")

N, D = 1000, 3
ROWS = torch.cat([torch.randn(N // 2, D, generator=torch.Generator().manual_seed(i)) + 4 * i for i in (0, 1)]).numpy()
WEIGHTS = np.linspace(0.5, 2, N)


def fitted(data, **arguments):
    return StudentTMixture(2, D, generator=0, max_iter=10, tol=0).fit(data, **arguments)


def table(rows=ROWS, kind="fixed"):
    if kind == "columns":
        return pa.table({f"x{i}": rows[:, i] for i in range(D)})
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(rows.ravel(), D)
    else:
        column = pa.array([list(row) for row in rows], type=pa.list_(pa.float32()))
    return pa.table({"id": np.arange(len(rows)) + 7, "embedding": column, "weight": WEIGHTS[: len(rows)]})


def parquet(path, kind="fixed", rows=ROWS, **settings):
    pq.write_table(table(rows, kind), path, row_group_size=333, **settings)
    return str(path)


def make_feather(path):
    feather.write_feather(table(), path, chunksize=100)
    return str(path)


def make_zarr(path, chunks=(128, 2)):
    array = zarr.open(str(path), mode="w", shape=ROWS.shape, chunks=chunks, dtype=ROWS.dtype)
    array[:] = ROWS
    return str(path)


def in_memory(name, path):
    with fsspec.open(f"memory://{name}", "wb") as file:
        file.write(Path(path).read_bytes())
    return f"memory://{name}"


def make_npy(path, rows=ROWS):
    np.save(path, rows)
    return str(path)


SOURCES = {
    "parquet, lists of one length": lambda p: parquet(p / "x.parquet"),
    "parquet, lists": lambda p: parquet(p / "x.parquet", "lists"),
    "parquet, a column a feature": lambda p: parquet(p / "x.parquet", "columns"),
    "feather": lambda p: make_feather(p / "x.feather"),
    "arrow": lambda p: make_feather(p / "x.arrow"),
    "zarr": lambda p: make_zarr(p / "x.zarr"),
    "npy at a URL": lambda p: in_memory("x.npy", make_npy(p / "x.npy")),
    "parquet at a URL": lambda p: in_memory("x.parquet", parquet(p / "x.parquet")),
    "a Hugging Face data set": lambda p: datasets.Dataset(table()).with_format("torch"),
    "several files": lambda p: [parquet(p / f"{i}.parquet", rows=part) for i, part in enumerate(np.split(ROWS, [400]))],
    "a Zarr array": lambda p: zarr.open(make_zarr(p / "x.zarr"), mode="r"),
    "opened rows": lambda p: open_rows(parquet(p / "x.parquet"), "embedding"),
    "opened rows, pickled": lambda p: pickle.loads(pickle.dumps(open_rows(make_zarr(p / "x.zarr")))),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_fit_is_the_same_from_wherever(source, tmp_path):
    data = SOURCES[source](tmp_path)
    expected, found = fitted(ROWS), fitted(data)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, msg=name)
    assert torch.equal(found.predict(data), expected.predict(ROWS))


@pytest.mark.parametrize("source", ["parquet, lists of one length", "feather", "a Hugging Face data set", "zarr"])
def test_opened_rows_say_what_they_are_and_come_in_blocks(source, tmp_path):
    rows = open_rows(SOURCES[source](tmp_path))
    assert rows.shape == (N, D)
    assert len(rows) == N
    assert str(rows.shape) in repr(rows)
    for size in (1, 64, 5000)[source == "zarr" :]:
        blocks = list(rows.blocks(size))
        assert np.array_equal(np.concatenate(blocks), ROWS)
        assert max(map(len, blocks)) <= size


@pytest.mark.parametrize("source", ["parquet, lists", "feather", "a Hugging Face data set"])
def test_weights_and_ids_are_further_columns(source, tmp_path):
    rows = open_rows(SOURCES[source](tmp_path), "embedding")
    assert np.array_equal(rows.column("id"), np.arange(N) + 7)
    expected = fitted(ROWS, sample_weight=WEIGHTS)
    torch.testing.assert_close(fitted(rows, sample_weight=rows.column("weight")).means, expected.means)
    with pytest.raises(ValueError, match=r"has no column 'label'"):
        rows.column("label")


def test_an_empty_file_is_a_shard_without_rows(tmp_path):
    for kind in ("fixed", "columns"):
        empty = parquet(tmp_path / "empty.parquet", kind, ROWS[:0])
        rows = open_rows(empty, "embedding" if kind == "fixed" else None)
        assert rows.shape == (0, D)
        torch.testing.assert_close(fitted([rows, ROWS]).means, fitted(ROWS).means)


def test_columns_are_chosen(tmp_path):
    path = parquet(tmp_path / "x.parquet", "columns")
    assert next(iter(open_rows(path, ["x2", "x0"]).blocks(5))).tolist() == ROWS[:5, [2, 0]].tolist()
    half = pa.table({"x": pa.FixedSizeListArray.from_arrays(ROWS.astype(np.float16).ravel(), D)})
    pq.write_table(half, tmp_path / "half.parquet")
    assert next(iter(open_rows(tmp_path / "half.parquet").blocks(5))).dtype == np.float16
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w")
    for name in ("a", "b"):
        group[name] = ROWS * (1 if name == "a" else 2)
    assert np.array_equal(next(iter(open_rows(tmp_path / "g.zarr", "b").blocks(N))), ROWS * 2)
    with pytest.raises(ValueError, match=r"g\.zarr cannot be read: name one of its arrays \(--name\): a, b"):
        open_rows(tmp_path / "g.zarr")


def test_what_does_not_fit_is_named(tmp_path):
    several = table().append_column("other", table().column("embedding"))
    pq.write_table(several, tmp_path / "several.parquet")
    ragged = pa.table({"x": [[1.0, 2.0], [3.0]]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    pq.write_table(pa.table({"x": [[1.0], None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"x": [["a"]]}), tmp_path / "text.parquet")
    whole = Path(parquet(tmp_path / "whole.parquet")).read_bytes()
    (tmp_path / "short.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.arrow").write_bytes(b"noise")
    for name, columns, message in [
        ("several.parquet", None, "several.parquet has columns id, embedding, weight, other: say by columns"),
        ("several.parquet", "z", "several.parquet has no column z, but id, embedding"),
        ("several.parquet", ["id", "other"], "several.parquet: columns must be one of lists, or several of numbers"),
        ("null.parquet", None, "null.parquet has nothing in row 1 of column x"),
        ("text.parquet", None, "text.parquet must hold real numbers, but its column x holds list<"),
        ("short.parquet", None, "short.parquet cannot be read: "),
        ("noise.arrow", None, "noise.arrow cannot be read: "),
        ("x.csv", None, r"x.csv must end in one of .npy, "),
    ]:
        with pytest.raises(ValueError, match=message):
            list(open_rows(tmp_path / name, columns).blocks(10))
    with pytest.raises(ValueError, match=r"ragged\.parquet has 1 numbers in row 1, and 2 in others"):
        list(open_rows(tmp_path / "ragged.parquet").blocks(10))
    for name in ("gone.parquet", "gone.zarr"):
        with pytest.raises(FileNotFoundError, match=name):
            open_rows(tmp_path / name)
    for place, message in [
        ("memory://gone.npz", "cannot be read from afar"),
        ("memory://f.npy", "one column after the"),
    ]:
        in_memory("f.npy", make_npy(tmp_path / "f.npy", np.asfortranarray(ROWS)))
        with pytest.raises(ValueError, match=message):
            open_rows(place)
    with pytest.raises(ValueError, match=r"is a folder: give the files in it, which end in one of \.npy"):
        open_rows(tmp_path)
    parts = datasets.DatasetDict(train=datasets.Dataset(table()))
    for data in (parts, parts["train"].to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"data must be a datasets\.Dataset, got"):
            fitted(data)
    with pytest.raises(ValueError, match=r"whole\.parquet has 3 features, but the mixture has n_features=2"):
        StudentTMixture(2, 2).fit(str(tmp_path / "whole.parquet"))


def test_a_file_that_ends_early_leaves_the_mixture_as_it_was(tmp_path):
    mixture = fitted(ROWS)
    before = {name: tensor.clone() for name, tensor in mixture.state_dict().items()}
    place = in_memory("short.npy", make_npy(tmp_path / "short.npy"))
    rows = open_rows(place)
    with fsspec.open(place, "wb") as file:
        file.write((tmp_path / "short.npy").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"memory://short\.npy cannot be read: it ends in row 991"):
        mixture.fit(rows)
    for name, tensor in mixture.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_torch_data_sets_come_through_loaders():
    class Iterable(torch.utils.data.IterableDataset):
        """As WebDataset's: samples one after the other, from the beginning every time."""

        def __iter__(self):
            return ((torch.from_numpy(row), i) for i, row in enumerate(ROWS))

    expected = fitted(ROWS)
    for data in (Iterable(), torch.utils.data.TensorDataset(torch.from_numpy(ROWS), torch.arange(N))):
        loader = torch.utils.data.DataLoader(data, batch_size=64)
        torch.testing.assert_close(fitted(loader).means, expected.means)


def test_a_new_kind_of_file_is_one_subclass(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "OPENERS", dict(sources.OPENERS))

    class Text(Rows):
        def __init__(self, place):
            self.place = place
            self.shape = np.loadtxt(place).shape

        def blocks(self, size):
            yield from np.array_split(np.loadtxt(self.place), -(-len(self) // size))

    @opens(".txt")
    def open_text(place, columns):
        return Text(place)

    np.savetxt(tmp_path / "x.txt", ROWS)
    torch.testing.assert_close(fitted(str(tmp_path / "x.txt")).means, fitted(ROWS.astype(np.float64)).means)


# ------------------------------------------------------------------ the command line


def test_a_table_gets_its_clusters_as_a_table_with_its_ids(tmp_path):
    for name in ("x.parquet", "y.feather"):
        (parquet if "parquet" in name else make_feather)(tmp_path / name)
    fit = ["fit", str(tmp_path), "--name", "embedding", "-k", "2", "-o", str(tmp_path / "m.safetensors")]
    assert main([*fit, "--max-iter", "10", "--tol", "0"]) == 0
    predict = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path), "--name", "embedding", "--keep", "id"]
    assert main([*predict, "--keep", "weight"]) == 0
    mixture = StudentTMixture.load(tmp_path / "m.safetensors")
    for found in (pq.read_table(tmp_path / "x.clusters.parquet"), feather.read_table(tmp_path / "y.clusters.feather")):
        assert found.column_names == ["id", "weight", "label", "confidence", "outlier_weight"]
        assert np.array_equal(found["id"], np.arange(N) + 7)
        assert np.array_equal(found["label"], mixture.predict(ROWS))
        np.testing.assert_allclose(found["confidence"], mixture(torch.from_numpy(ROWS)).amax(1), atol=1e-6)
    assert main([*predict, "--keep", "weight"]) == 0  # there already
    assert main(predict) == 2, "what is there has other columns"
    assert json.loads((tmp_path / "x.clusters.json").read_text())["rows"] == N


def test_urls_on_the_command_line(tmp_path, capsys):
    place = in_memory("far.parquet", parquet(tmp_path / "x.parquet"))
    output = str(tmp_path / "m.safetensors")
    assert main(["fit", place, "--name", "embedding", "-k", "2", "-o", output, "--max-iter", "5"]) == 0
    assert main(["predict", output, place, "--name", "embedding"]) == 2
    assert "is far away: say by --output-dir where its clusters go" in capsys.readouterr().err
    assert main(["predict", output, place, "--name", "embedding", "--output-dir", str(tmp_path / "out")]) == 0
    assert len(pq.read_table(tmp_path / "out/far.clusters.parquet")) == N
    make_npy(tmp_path / "x.npy")
    assert main(["predict", output, str(tmp_path / "x.npy"), "--keep", "id"]) == 2
    assert "--keep id is for tables" in capsys.readouterr().err


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as object stores do."""

    def do_GET(self):
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        start, stop = 0, len(content)
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last or stop) + 1, stop)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_files_of_a_server(server, tmp_path):
    pytest.importorskip("aiohttp")
    make_npy(tmp_path / "x.npy")
    parquet(tmp_path / "x.parquet")
    expected = fitted(ROWS).means
    for name in ("x.npy", "x.parquet"):
        torch.testing.assert_close(fitted(open_rows(f"{server}/{name}")).means, expected)


# ------------------------------------------------------------------ memory and time


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """A process that labels rows grows by far less than they take."""
    n, d = 400_000, 64  # 102 MB
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(tmp_path / "x.parquet", pa.schema([("x", pa.list_(pa.float32(), d))])) as writer:
        for _ in range(8):
            column = pa.FixedSizeListArray.from_arrays(rng.normal(size=n // 8 * d).astype(np.float32), d)
            writer.write_table(pa.table({"x": column}), row_group_size=10_000)
    program = textwrap.dedent(f"""
        import resource
        import torch
        from tmixture import StudentTMixture
        from tmixture.data import open_rows
        torch.set_num_threads(1)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        mixture = StudentTMixture(2, {d}, max_iter=2, tol=0, init=torch.randn(2, {d}), chunk_size=4096)
        next(iter(open_rows("{tmp_path}/x.parquet").blocks(4096)))
        mixture.partial_fit(torch.randn(5000, {d}))
        before = peak()
        mixture.predict(open_rows("{tmp_path}/x.parquet"))
        print(peak() - before)
    """)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 60, f"{run.stdout} MB more for 102 MB of rows"


def test_reading_goes_on_while_somebody_computes():
    log = []

    def read():
        for i in range(4):
            log.append(f"read {i}")
            yield i

    for item in ahead(read(), n=2):
        time.sleep(0.05)
        log.append(f"used {item}")
    assert log.index("read 1") < log.index("used 0")
    assert [entry for entry in log if entry.startswith("used")] == [f"used {i}" for i in range(4)]


def test_who_reads_ahead_stops_and_fails_like_who_does_not():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    before = threading.active_count()
    items = ahead(endless())
    assert next(items) == 1
    items.close()
    assert closed.is_set()
    assert threading.active_count() == before

    def broken():
        yield 1
        raise OSError("disk")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)
