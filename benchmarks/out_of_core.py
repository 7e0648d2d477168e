"""What it costs to fit from a file instead of from memory, and how time grows with the number of rows.

    python benchmarks/out_of_core.py --rows 1000 10000 100000 1000000 --features 64 --components 16

Writes `benchmarks/OUT_OF_CORE.md` and `benchmarks/out_of_core.png`. Memory and file take turns in one process on one
thread, with the file in the page cache, and times are CPU seconds, reading included: on a machine that is busy with
other things their ratios still hold.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tmixture import StudentTMixture

FOLDER = Path(__file__).parent


@dataclass
class Row:
    rows: int
    memory_seconds: float
    file_seconds: float
    data_bytes: int
    peak_bytes: int

    @property
    def throughput(self) -> float:
        """Of the fit from a file, as a share of that from memory."""
        return self.memory_seconds / self.file_seconds


def write(path: Path, rows: int, features: int) -> None:
    data = np.lib.format.open_memmap(path, "w+", np.float32, (rows, features))
    generator = np.random.default_rng(0)
    centres = 3 * generator.normal(size=(32, features))
    for start in range(0, rows, 16384):
        part = data[start : start + 16384]
        part[:] = centres[generator.integers(32, size=len(part))] + generator.normal(size=part.shape)
    data.flush()


def fit(data: object, arguments: argparse.Namespace) -> None:
    means = torch.randn(arguments.components, arguments.features, generator=torch.Generator().manual_seed(0))
    StudentTMixture(
        arguments.components,
        arguments.features,
        covariance_type=arguments.covariance_type,
        init=means,
        max_iter=arguments.iterations,
        tol=0,
        generator=0,
    ).fit(data)


def cpu_seconds(action: Callable[[], None]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


@contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """The bytes of memory that are no page of a file: at the start, every few milliseconds, and at the end."""
    samples, done = [], threading.Event()

    def sample() -> None:
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        samples.append(1024 * int(fields["RssAnon"].split()[0]))

    def watch() -> None:
        while not done.wait(0.005):
            sample()

    sample()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()
        sample()


def measure(rows: int, arguments: argparse.Namespace) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write(path, rows, arguments.features)
        with anonymous_memory() as samples:
            fit(path, arguments)  # fills the page cache and warms up
        in_memory = torch.from_numpy(np.load(path))
        pairs = [
            (cpu_seconds(lambda: fit(in_memory, arguments)), cpu_seconds(lambda: fit(path, arguments)))
            for _ in range(arguments.repeats)
        ]
    memory, file = (min(seconds) for seconds in zip(*pairs))
    return Row(rows, memory, file, in_memory.nbytes, max(samples) - samples[0])


def report(table: list[Row], arguments: argparse.Namespace) -> str:
    lines = [
        "# Out of core",
        "",
        f"K = {arguments.components}, d = {arguments.features}, {arguments.covariance_type} scales, float32, "
        f"{arguments.iterations} iterations and the pass that checks the data and draws the sample; best of "
        f"{arguments.repeats}. CPU seconds of one thread, page cache warm. By `benchmarks/out_of_core.py`; torch "
        f"{torch.__version__}.",
        "",
        "| rows | data | from memory | from a file | throughput | peak memory of the fit from a file |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.rows:,} | {row.data_bytes / 1e6:.1f} MB | {row.memory_seconds:.3f} s | {row.file_seconds:.3f} s | "
        f"{100 * row.throughput:.0f} % | {row.peak_bytes / 1e6:.0f} MB |"
        for row in table
    ]
    large = table[len(table) // 2 :]
    slope = np.polyfit(np.log([row.rows for row in large]), np.log([row.file_seconds for row in large]), 1)[0]
    lines += [
        "",
        f"From {large[0].rows:,} rows on, time grows as N^{slope:.2f}.",
        "",
        "![Seconds against rows](out_of_core.png)",
        "",
        "Peak memory is what is allocated beyond the start of the fit; file pages are not counted. Most of it is the "
        "sample that a fit starts from and what is computed of it; beyond 2^18 rows (128 MB of them) it does not grow.",
        "",
    ]
    return "\n".join(lines)


def draw(table: list[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 4), layout="constrained")).subplots()
    rows = np.array([row.rows for row in table])
    axes.loglog(rows, [row.memory_seconds for row in table], "o-", label="from memory")
    axes.loglog(rows, [row.file_seconds for row in table], "s--", label="from a file")
    axes.loglog(rows, table[-1].file_seconds * rows / rows[-1], ":", color="grey", label="proportional to N")
    axes.set(xlabel="rows", ylabel="CPU seconds", title="Time of a fit")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--covariance-type", default="diag")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = [measure(rows, arguments) for rows in arguments.rows]
    draw(table, arguments.output / "out_of_core.png")
    (arguments.output / "OUT_OF_CORE.md").write_text(report(table, arguments))
    print(report(table, arguments))


if __name__ == "__main__":
    main()
