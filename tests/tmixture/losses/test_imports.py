"""Where the losses are found, and what importing them costs."""

import subprocess
import sys

import pytest

SCRIPT = """
from tmixture.losses import ClusterTripletLoss

import losses

print(losses.__file__, ClusterTripletLoss.__module__)
"""


def run(code, folder, *options):
    done = subprocess.run([sys.executable, *options, code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_losses_module_of_ones_own_stays_ones_own(tmp_path):
    """The folder of a script comes first on the path, so that a losses.py beside it is what `losses` means there."""
    (tmp_path / "losses.py").write_text("def focal_loss(): ...\n")
    (tmp_path / "train.py").write_text(SCRIPT)
    found, module = run("train.py", tmp_path).split()
    assert found == str(tmp_path / "losses.py")
    assert module == "tmixture.losses.triplet"


def test_the_short_name_gives_the_same_objects():
    import losses
    import tmixture.losses

    assert losses.__all__ == tmixture.losses.__all__
    assert all(getattr(losses, name) is getattr(tmixture.losses, name) for name in losses.__all__)


@pytest.mark.slow
def test_the_mixture_alone_does_not_need_metric_learning(tmp_path):
    code = "import sys; sys.modules['pytorch_metric_learning'] = None; import tmixture; print(tmixture.__version__)"
    assert run(code, tmp_path, "-c")
