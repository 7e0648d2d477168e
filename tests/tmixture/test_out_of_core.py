"""Data larger than the memory that the process may have, in files."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture

pytestmark = pytest.mark.slow

ROWS, FEATURES = 262_144, 64  # 64 MB of float32
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",  # threads take memory, too
    # Freed memory goes back to the system at once: else what the first fit freed could hold all the data, or none.
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
    "MALLOC_ARENA_MAX": "1",
}
SCRIPT = """
    import resource, sys
    import torch
    import tmixture.sampling
    from tmixture import StudentTMixture

    torch.set_num_threads(1)
    tmixture.sampling.SAMPLE_ELEMENTS = 2**18  # in proportion to data that is small for a test
    settings = dict(max_iter=3, tol=0, chunk_size=1024, generator=0)
    StudentTMixture(8, 64, **settings).fit(torch.randn(4096, 64))  # what torch allocates once and for all

    def used():
        fields = dict(line.split(":") for line in open("/proc/self/status"))
        return 1024 * int(fields["VmData"].split()[0])

    # Memory maps of files do not count towards RLIMIT_DATA; everything allocated does.
    limit = used() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        torch.ones(262_144, 64)
    except RuntimeError:
        print("the data does not fit")
    StudentTMixture(8, 64, **settings).fit(sys.argv[3:]).save(sys.argv[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_a_fit_to_files_that_do_not_fit_into_memory_is_that_in_memory(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(ROWS, FEATURES)).astype(np.float32)
    x[:, 0] += np.arange(ROWS) % 3 * 4
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, part in zip(paths, np.split(x, [100_000, 100_100])):
        np.save(path, part)
    limit, output = str(32 * 2**20), tmp_path / "mixture.safetensors"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), limit, output, *paths]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert (result.returncode, result.stdout) == (0, "the data does not fit\n"), result.stderr
    monkeypatch.setattr("tmixture.sampling.SAMPLE_ELEMENTS", 2**18)
    fitted = StudentTMixture.load(output)
    in_memory = StudentTMixture(8, FEATURES, max_iter=3, tol=0, chunk_size=1024, generator=0).fit(torch.from_numpy(x))
    assert fitted.history_ == in_memory.history_
    for name, value in in_memory.state_dict().items():
        assert torch.equal(fitted.state_dict()[name], value), name
