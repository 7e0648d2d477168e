"""What the pages of docs/extend say of the example: one file in a room, and the example knows it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).with_name("torchvision_stub.py")


def blocks(page):
    """The Python of a page of the documentation."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/extend" / page).read_text(), re.DOTALL)


@pytest.fixture
def example(tmp_path):
    """A copy of the example, to put a file into."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "runs"))
    return tmp_path / "examples"


def run(example, *flags, error=None):
    """The report of a tiny experiment, or None where it ends with a message."""
    output = example.parent / "run"
    tiny = "--epochs 1 --image-size 32 --batch-size 16 --n-components 3"
    done = subprocess.run(
        [sys.executable, STUB, example / "cxr_cml.py", "--output", output, *tiny.split(), *flags],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(example), str(ROOT / "src")])},
    )  # fmt: skip
    if error is not None:
        assert done.returncode != 0
        assert done.stderr.rstrip().endswith(error), done.stderr[-3000:]
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return (output / "report.html").read_text()


@pytest.mark.slow
def test_an_arm_a_clip_model_and_a_data_set_are_one_file_each(example, tmp_path):
    for name, block in zip(("gentle", "centre"), blocks("arm.md")):
        (example / f"cxr/training/arms/{name}.py").write_text(block)
    (example / "cxr/training/arms/sigmoid.py").write_text(blocks("objective.md")[0])
    (example / "cxr/clip/bag_of_words.py").write_text(blocks("clip-adapter.md")[0])
    (example / "cxr/data/nih.py").write_text(blocks("data-set.md")[0])
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    names = [f"{i:08}_000.png" for i in range(60)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(images / name)
    found = rng.choice(["No Finding", "Mass", "Mass|Edema", "Edema", "Effusion"], 60)
    table = {"Image Index": names, "Finding Labels": found, "Patient ID": np.arange(60), "View Position": "PA"}
    pd.DataFrame(table).to_csv(tmp_path / "table.csv", index=False)
    flags = ["--model", "bag-of-words", "--device", "cpu", "--data-set", "nih", "--rare-below", "20"]
    flags += ["--data-root", images, "--labels", tmp_path / "table.csv", "--arms"]
    message = "--arms gloria: model: BagOfWords has no image_features, which this objective learns from"
    run(example, *flags, "start", "gloria", error=message)
    page = run(example, *flags, "start", "gentle", "centre", "sigmoid", "sigmoid-cxr-cml")
    assert "CXR-CML, a tenth of the triplets" in page
    assert "CXR-CML with cluster centres" in page
    assert page.count("SigLIP&#39;s loss and CXR-CML") > 1
    assert "Effusion" in page
