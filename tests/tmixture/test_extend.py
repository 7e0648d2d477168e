"""What docs/extend/scale-structure.md says: a file with a scale structure, and nothing else, and every law holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAWS = ["background", "em", "files", "frozen", "laws", "missing", "priors", "reorder", "scales", "statistics"]


@pytest.mark.slow
def test_a_structure_in_one_file_meets_every_law(tmp_path):
    """The module of the page is all there is when the tests of all structures are run, in a process of their own."""
    page = (ROOT / "docs/extend/scale-structure.md").read_text()
    (tmp_path / "exchangeable.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    files = [str(ROOT / f"tests/tmixture/test_{law}.py") for law in LAWS]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "exchangeable", "-p", "no:cacheprovider", "-k", "exchangeable", *files],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30
