"""One thread per test process: the tests' tensors are small, and two threads on a busy machine wait for each other."""

import os

# Before NumPy is loaded, whose linear algebra reads them then; for the processes that tests start, too.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# The same cases every time, so that only a change makes a test fail; `--hypothesis-profile thorough` looks for more.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=10_000, deadline=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    """Each device that there is."""
    return torch.device(request.param)
