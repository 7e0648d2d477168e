"""The benchmarks run and write what they promise; how fast anything is, no test asks."""

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from benchmarks import (
    candidates,
    choices,
    compare,
    deep_clustering,
    few_labels,
    long_tailed,
    measure,
    merging,
    out_of_core,
    prompt_anchors,
    small,
    starts,
    throughput,
)
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_comparison_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "CACHE", tmp_path)
    monkeypatch.setattr(compare, "commit", lambda: "0000000")  # there may be no git
    monkeypatch.setattr(measure, "TIMED_SECONDS", 0.01)
    monkeypatch.setattr(measure, "_reset_peak", lambda device: 0)  # a process of its own may reset it, this one not
    measured = []

    def in_this_process(self, measurement, *arguments):
        measured.append((measurement, *arguments))
        return measure.MEASUREMENTS[measurement](*arguments)

    monkeypatch.setattr(compare.Runner, "_measure", in_this_process)
    monkeypatch.setattr(
        sys, "argv", ["compare", "--quick", "--only", "2kx64x4", "--only", "1kx64x4", "--only", "stage"]
    )
    compare.main()
    text = (tmp_path / "QUICK.md").read_text()
    assert {name for name, *_ in measured} >= {"speed", "convergence", "structure", "stage"}
    for heading in ("Time per iteration", "Iterations to the same log-likelihood", "Structures of the scales"):
        assert f"## {heading}" in text
    assert "| tmixture" in text
    assert (tmp_path / "QUICK.png").stat().st_size > 1000
    n_measured = len(measured)
    compare.main()
    assert len(measured) == n_measured  # a second run takes what is kept


def test_a_measurement_is_a_process_that_prints_json():
    command = [sys.executable, "-m", "benchmarks.measure", "speed", "cpu", "tmixture", "no-such-file.npy", "diag"]
    done = subprocess.run(command, cwd=compare.FOLDER.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{"failure": "FileNotFoundError')


def test_throughput():
    assert throughput.rows_per_second("diag", 4, 512, torch.device("cpu"), 1) > 0
    assert throughput.rows_per_second("full", 2, 256, torch.device("cpu"), 1) > 0


@pytest.mark.parametrize("choice", choices.CHOICES)
def test_special_cases_compute_what_the_code_without_them_does(choice, capsys):
    """Distances that only rule a component out are no values to compare; everything else is."""
    problem, with_it, without = next(choice())
    one, other = with_it(), without()
    if choice in (choices.one_exponential, choices.sparse_pairs, choices.newton_for_dof, choices.prepared_density):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert "=" in problem
    assert all(ratio > 0 for ratio in choices.ratios(with_it, without, 1))


@pytest.mark.parametrize("kind", candidates.KINDS)
def test_many_components(kind, tmp_path, monkeypatch, capsys):
    sizes = {"rows": 2000, "held-out": 200, "features": 8, "components": 40, "candidates": 4, "iterations": 2}
    flags = [str(part) for name, value in sizes.items() for part in (f"--{name}", value)]
    monkeypatch.setattr(sys, "argv", ["candidates", *flags, "--kind", kind, "--output", str(tmp_path / "table.md")])
    candidates.main()
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[-2].startswith("| all | ")
    assert table[-1].startswith("| 4 | ")


def test_out_of_core(tmp_path, monkeypatch):
    flags = ["--rows", "500", "1000", "2000", "--features", "8", "--components", "4", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["out_of_core", *flags, "--output", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        out_of_core.main()
    finally:
        torch.set_num_threads(threads)
    assert "| 2,000 | 0.1 MB |" in (tmp_path / "OUT_OF_CORE.md").read_text()
    assert (tmp_path / "out_of_core.png").stat().st_size > 1000


def test_starts(tmp_path, monkeypatch, capsys):
    flags = ["--seeds", "2", "--problems", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["starts", *flags])
    starts.main()
    assert "| 4 | 8 | 500 | 4 | " in (tmp_path / "STARTS.md").read_text()


def test_small_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["small", "--rounds", "2", "--shapes", "2", "--iterations", "4", "--sets", "3", "--output", str(tmp_path)],
    )
    small.main()
    text = (tmp_path / "SMALL.md").read_text()
    assert "| 150 × 4, K = 3, diag, float32 | " in text
    assert text.count("(× ") >= 10
    assert "| 3 × 200 × 8, K = 4, diag | " in text


def test_few_labels_are_compared_with_their_controls(tmp_path, monkeypatch):
    monkeypatch.setattr(few_labels, "ProcessPoolExecutor", InThisProcess)
    arms = ["triplets", "co-membership", "control: nearest centroid, co-membership", "control: shuffled, triplets"]
    output, kept = str(tmp_path / "table.md"), str(tmp_path / "kept")
    fixed = ["few_labels", "--labels", "2", "--seeds", "2", "--steps", "12", "--output", output, "--kept", kept]
    monkeypatch.setattr(sys, "argv", [*fixed, "--arms", *arms[:2]])
    few_labels.main()
    monkeypatch.setattr(sys, "argv", [*fixed, "--arms", *arms])
    few_labels.main()
    text = (tmp_path / "table.md").read_text()
    assert "## 2 labelled images of each class" in text
    for arm in arms:
        assert f"| {arm} | " in text
    monkeypatch.setattr(few_labels, "Training", None)  # nothing is trained twice
    few_labels.main()
    assert (tmp_path / "table.md").read_text() == text


def test_deep_clusters_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_clustering, "ProcessPoolExecutor", InThisProcess)
    flags = ["--seeds", "2", "--steps", "12", "--output", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", ["deep_clustering", *flags])
    deep_clustering.main()
    text = (tmp_path / "table.md").read_text()
    for method in (*deep_clustering.METHODS, "the loss's own mixture"):
        assert text.count(f"| {method} | ") >= 2


def test_merging_is_compared_on_real_data(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merging, "DATA", {"iris": merging.DATA["iris"]})
    monkeypatch.setattr(sys, "argv", ["merging", "--seeds", "2", "--output", str(tmp_path / "table.md")])
    merging.main()
    text = (tmp_path / "table.md").read_text()
    assert text.count("| iris | ") == len(merging.STRUCTURES)
    shares = torch.tensor([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.1, 0.9]], dtype=torch.float64)
    assert merging.undivided(shares, 2).tolist() == [0, 0, 1]


def test_prompts_as_anchors_find_clusters_of_their_own(monkeypatch):
    monkeypatch.setattr(prompt_anchors, "SETTINGS", (("spherical", 4.0, 10.0),))
    rng, labels = np.random.default_rng(0), np.eye(3, dtype=bool)[np.arange(60) % 3]
    prompts = np.stack([np.eye(3, 8), np.eye(3, 8, 4)]).astype(np.float32)
    images = torch.from_numpy((labels @ prompts[0] + 0.05 * rng.normal(size=(60, 8))).astype(np.float32))
    lines = prompt_anchors.table(images, prompts, labels)
    assert lines[2:4] == [
        "| as they are | zero-shot, against “no …” | 100.0 | |",
        "| as they are | cosine with the prompt | 100.0 | |",
    ]
    assert [line.split(" | ")[-2] for line in lines[4:]] == ["100.0"] * 2


def test_pictures_are_read_from_a_zip_file_and_augmented(tmp_path):
    path, rng = tmp_path / "pictures.zip", np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for part, n in (("train", 3), ("test", 2)):
            for label in long_tailed.CIFAR_CLASSES.split():
                for i in range(n):
                    picture = io.BytesIO()
                    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(picture, "JPEG")
                    archive.writestr(f"{part}/{label}/{i}.jpg", picture.getvalue())
    data = long_tailed.split_cifar(0, 2, path)
    assert data.x.shape == (30, 3, 32, 32)
    assert data.known[data.labelled].bincount().tolist() == [2] * 10
    assert (data.known >= 0).sum() == 20
    generator = torch.Generator().manual_seed(0)
    moved = long_tailed.shifted(data.x, 4, generator)
    assert any(torch.equal(moved[0, :, 4:28, 4:28], data.x[0, :, 4 + i : 28 + i, 4 + j : 28 + j])
               for i in range(-4, 5) for j in range(-4, 5))  # fmt: skip
    kind = long_tailed.DATA_SETS["cifar10-lt"]
    assert kind.encoder(0)(kind.augmented(data.x, generator)).shape == (30, kind.width)


def test_the_split_is_long_tailed_and_its_labels_are_few():
    data = long_tailed.split_digits(3, 2)
    assert data.y.bincount().tolist()[0] == 110
    assert data.y.bincount().tolist()[-1] == 5
    assert (data.known >= 0).sum() == 20
    assert (data.known[data.labelled] == data.y[data.labelled]).all()
    assert set(data.test_y.bincount().tolist()) == {64, 65}


@pytest.mark.parametrize("name", [name for name in few_labels.ARMS if "weight" not in name])
def test_every_arm_gives_a_gradient(name):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 10
    known = torch.where(torch.arange(60) < 20, labels, -1)
    centres = 0.5 * torch.randn(10, 32, generator=generator)
    added = few_labels.ARMS[name](32)
    total = 0.0
    for _ in range(22):
        x = (centres[labels] + torch.randn(60, 32, generator=generator)).requires_grad_()
        added(x, known, labels).backward()
        total += float(x.grad.abs().sum())
    assert total > 0


class InThisProcess:
    """What a pool of processes does, without any."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, *arguments):
        return map(function, *arguments)
