"""The example under a real `torchrun`."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "torchrun_fit.py"


@pytest.fixture
def shards(tmp_path):
    """Three files of unequal length: the first process has two of them."""
    generator = np.random.default_rng(0)
    centres = 5 * generator.normal(size=(4, 8))
    x = (centres[generator.integers(4, size=700)] + generator.normal(size=(700, 8))).astype(np.float32)
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, part in zip(paths, np.split(x, [90, 400])):
        np.save(path, part)
    return paths


def torchrun(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, folder]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["--n-components", "4", "--covariance-type", "full", "--output", folder / "mixture.safetensors"]
    return subprocess.run(command + options, env=settings, capture_output=True, text=True, timeout=250)


def test_two_processes_fit_what_one_would(shards, tmp_path):
    result = torchrun(tmp_path)
    assert result.returncode == 0, result.stderr
    fitted = StudentTMixture.load(tmp_path / "mixture.safetensors")
    order = [shards[0], shards[2], shards[1]]  # as the processes hold them
    alone = StudentTMixture(4, 8, covariance_type="full", generator=0).fit(order)
    for name in ("weights", "means", "scales"):
        torch.testing.assert_close(getattr(fitted, name), getattr(alone, name), rtol=1e-5, atol=1e-6)
    for path in shards:
        np.testing.assert_array_equal(np.load(path.with_suffix(".clusters.npy")), alone.predict(path))


def test_every_process_names_the_one_with_broken_data(shards, tmp_path):
    x = np.load(shards[1])
    x[17, 3] = np.nan
    np.save(shards[1], x)
    result = torchrun(tmp_path)
    assert result.returncode != 0
    cause = "ValueError: data must be finite and below 1e15 in magnitude, but row 17 holds nan in column 3"
    assert f"[rank0]: RuntimeError: rank 1 failed: {cause}" in result.stderr
    assert f"[rank1]: {cause}" in result.stderr
    assert not (tmp_path / "mixture.safetensors").exists()
