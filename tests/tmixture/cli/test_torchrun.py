"""The command line under a real `torchrun`: one command, the same result, whoever is lost on the way."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture
from tmixture.cli import main
from tmixture.launched import own_share

pytestmark = pytest.mark.slow

D, LENGTHS = 6, (500, 90, 310, 200, 7)
# Kills a process of this rank once at each of these iterations, as a machine would that is lost.
LOSING = """
import os, sys
from pathlib import Path
from tmixture import cli, commands
iterate, marks = commands._iterate, Path(sys.argv[1])
def losing(mixture, data, n_iter):
    for at in sys.argv[2].split(","):
        mark = marks / at
        if os.environ["RANK"] == "1" and mixture.n_iter_ == int(at) and not mark.exists():
            mark.touch()
            os._exit(9)
    iterate(mixture, data, n_iter)
commands._iterate = losing
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture
def folder(tmp_path):
    """Files of unequal lengths."""
    rng = np.random.default_rng(0)
    rows = 4 * rng.normal(size=(4, D))[rng.integers(4, size=sum(LENGTHS))] + rng.normal(size=(sum(LENGTHS), D))
    folder = tmp_path / "embeddings"
    folder.mkdir()
    for i, part in enumerate(np.split(rows.astype(np.float32), np.cumsum(LENGTHS)[:-1])):
        np.save(folder / f"{i}.npy", part)
    return folder


def fit(folder, output):
    settings = "--max-iter 12 --tol 0 --checkpoint-every 3 --covariance full".split()  # noqa: SIM905
    return ["fit", str(folder), "-k", "4", "-o", str(output), *settings]


def torchrun(n, *program, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    whole = [*command, "--max-restarts", str(restarts), *map(str, program)]
    return subprocess.run(whole, env=settings, capture_output=True, text=True, timeout=250)


def check_same(output, folder, tmp_path):
    assert main(fit(folder, tmp_path / "alone.safetensors")) == 0
    found, alone = StudentTMixture.load(output), StudentTMixture.load(tmp_path / "alone.safetensors")
    assert (found.n_iter_, found.distributed) == (12, False)
    np.testing.assert_allclose(found.history_, alone.history_, rtol=1e-6)
    for name in ("weights", "means", "scales"):
        torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-4, atol=1e-5)
    assert not output.with_name(output.name + ".checkpoint").exists()


def test_two_processes_are_one_command(folder, tmp_path):
    output = tmp_path / "m.safetensors"
    result = torchrun(2, "-m", "tmixture", *fit(folder, output))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("iteration 12: ") == 1, "the first process speaks for all"
    assert result.stdout.count("not converged after 12 iterations") == 1
    check_same(output, folder, tmp_path)


def test_a_worker_that_is_killed_twice_changes_nothing(folder, tmp_path):
    output, script, marks = tmp_path / "m.safetensors", tmp_path / "losing.py", tmp_path / "marks"
    script.write_text(LOSING)
    marks.mkdir()
    result = torchrun(3, script, marks, "3,9", *fit(folder, output), "--overwrite", restarts=3)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in marks.iterdir()} == {"3", "9"}
    assert f"{output}.checkpoint has 3 iterations already" in result.stderr
    assert f"{output}.checkpoint has 9 iterations already" in result.stderr
    check_same(output, folder, tmp_path)


def test_a_fit_that_lost_its_machine_goes_on_with_another_number_of_workers(folder, tmp_path):
    output, script, marks = tmp_path / "m.safetensors", tmp_path / "losing.py", tmp_path / "marks"
    script.write_text(LOSING)
    marks.mkdir()
    result = torchrun(3, script, marks, "6", *fit(folder, output))
    assert result.returncode != 0
    assert not output.exists()
    result = torchrun(2, "-m", "tmixture", *fit(folder, output))
    assert result.returncode == 0, result.stderr
    assert f"{output}.checkpoint has 6 iterations already" in result.stderr
    check_same(output, folder, tmp_path)


def test_a_broken_file_is_named_by_all_and_nobody_hangs(folder, tmp_path):
    rows = np.load(folder / "4.npy")
    rows[3, 2] = np.inf
    np.save(folder / "4.npy", rows)
    result = torchrun(2, "-m", "tmixture", *fit(folder, tmp_path / "m.safetensors"))
    assert result.returncode != 0
    cause = "4.npy must be finite and below 1e15 in magnitude, but row 3 holds inf in column 2"
    assert result.stderr.count(cause) >= 2
    assert "rank 1 failed: ValueError: " in result.stderr
    assert not (tmp_path / "m.safetensors.checkpoint").exists()


@pytest.mark.parametrize("sizes", [[1], [5, 1, 1, 1], [1] * 10, [100, 1, 1, 1, 100], [0, 0, 3]])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_shares_are_consecutive_and_nobody_has_much_more(sizes, n, monkeypatch):
    monkeypatch.setattr("tmixture.launched.world_size", lambda: n)
    shares = []
    for rank in range(n):
        monkeypatch.setattr("tmixture.launched.rank", lambda rank=rank: rank)
        shares.append(own_share(range(len(sizes)), sizes))
    assert [i for share in shares for i in share] == list(range(len(sizes)))
    largest = max(sum(sizes[i] for i in share) for share in shares)
    assert largest <= sum(sizes) / n + max(sizes)
