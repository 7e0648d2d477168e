"""One thread per test process: the tests' tensors are small, and two threads on a busy machine wait for each other."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def device(request):
    """Each device that there is."""
    return torch.device(request.param)
