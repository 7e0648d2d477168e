"""One thread per test process: the tests' tensors are small, and two threads on a busy machine wait for each other."""

import torch

torch.set_num_threads(1)
