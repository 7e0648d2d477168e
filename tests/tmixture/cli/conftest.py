"""Files of embeddings."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.tmixture.cli.helpers import D, N


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, D))
    x = centres[rng.integers(0, 3, 2 * N)] + rng.standard_t(4, size=(2 * N, D))
    return x.astype(np.float32)


@pytest.fixture
def folder(tmp_path, rows):
    """The rows in files of all kinds; the third part is stored in bfloat16."""
    place = tmp_path / "embeddings"
    place.mkdir()
    first, second, third = np.split(rows, [500, 1000])
    np.save(place / "a.npy", first)
    np.savez(place / "b.npz", rows=second)
    save_file({"rows": torch.as_tensor(third).bfloat16()}, place / "c.safetensors")
    (place / "notes.txt").write_text("not embeddings")
    return place
