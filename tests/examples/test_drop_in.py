"""The drop-in examples run as they stand, and what they train keeps its clusters."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss

EXAMPLES = Path(__file__).parents[2] / "examples"
DROP_IN = [
    "huggingface_clip.py",
    "transformers_trainer.py",
    "open_clip_loss.py",
    "lightning_module.py",
    "metric_learning_trainer.py",
    "cluster_folder.sh",
]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example as a script would be, in an empty folder, and returns its names."""

    def run_example(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with torch.random.fork_rng():
            return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    return run_example


def numbers(line, name):
    return float(re.search(rf"{name}\W+([-\d.e]+)", line)[1])


def assert_clusters_are_used(line, prefix=""):
    """A last line of statistics that no failed run would print: several clusters, sure of their rows."""
    assert numbers(line, f"{prefix}active_clusters") >= 4
    assert numbers(line, f"{prefix}perplexity") > 3
    assert 0.5 < numbers(line, f"{prefix}confidence") <= 1


@pytest.mark.parametrize("name", DROP_IN)
def test_short_enough_to_be_read(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80


def test_huggingface_clip(run, capsys):
    run("huggingface_clip")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 10", "step 20", "step 30"]
    assert numbers(lines[-1], "loss") < numbers(lines[0], "loss")
    assert_clusters_are_used(lines[-1])


def test_transformers_trainer(run, capsys, tmp_path):
    pytest.importorskip("accelerate")
    names = run("transformers_trainer", "--output", str(tmp_path / "run"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "cluster_perplexity" in line]
    assert len(lines) >= 3
    assert_clusters_are_used(lines[-1], "cluster_")
    # A checkpoint holds the mixture, running statistics and all: another model goes on from there.
    from safetensors.torch import load_file

    state = load_file(tmp_path / "run" / "checkpoint-30" / "model.safetensors")
    model = names["tiny_clip"]()
    model.cluster_loss = names["ClusterTripletLoss"](n_components=6, embedding_size=32, refit=5, memory_size=320)
    assert not model.cluster_loss.mixture.fitted
    model.load_state_dict(state)
    assert model.cluster_loss.mixture.fitted
    assert len(model.cluster_loss.memory) > 320


def test_open_clip_loss(run, capsys):
    open_clip = pytest.importorskip("open_clip")
    names = run("open_clip_loss")
    lines = capsys.readouterr().out.splitlines()
    assert numbers(lines[-1], "contrastive_loss") < numbers(lines[0], "contrastive_loss")
    assert_clusters_are_used(lines[-1])
    # It is open_clip's loss plus the cluster loss, by name or as a sum.
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(60, 8, generator=generator)) for _ in range(2))
    cluster_loss = names["ClusterTripletLoss"](n_components=3, embedding_size=8, refit="streaming")
    loss_fn = names["ClipClusterLoss"](cluster_loss)
    cluster_loss(image)
    losses = loss_fn.eval()(image, text, torch.tensor(10.0), output_dict=True)
    assert losses["contrastive_loss"] == open_clip.ClipLoss()(image, text, torch.tensor(10.0))
    assert losses["cluster_loss"] == cluster_loss(image) > 0
    assert loss_fn(image, text, torch.tensor(10.0)) == sum(losses.values())


@pytest.mark.filterwarnings("ignore")
def test_lightning_module(run, capsys, tmp_path):
    pytest.importorskip("lightning")
    names = run("lightning_module")
    assert_clusters_are_used(capsys.readouterr().out.splitlines()[-1], "cluster_")
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = names["ViTModel"](names["ViTConfig"](**tiny, image_size=32, patch_size=8))
    module = names["ClusteredEncoder"](encoder, 6, 1e-3)
    module.load_state_dict(state)
    assert isinstance(module.cluster_loss, ClusterLoss)
    assert module.cluster_loss.mixture.fitted


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_metric_learning_trainer(run, capsys):
    run("metric_learning_trainer")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1", "epoch 2", "epoch 3"]
    assert_clusters_are_used(lines[-1])


@pytest.mark.slow
def test_cluster_folder(tmp_path):
    """With `tmixture` and `python` on the path, as an installation puts them there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("tmixture", "-m tmixture "), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}
    folder = tmp_path / "embeddings"
    process = subprocess.run(
        [EXAMPLES / "cluster_folder.sh", folder], env=environment, capture_output=True, text=True, check=True
    )
    mixture = StudentTMixture.load(f"{folder}.mixture")
    # Five clusters of 40, 30, 20, 8 and 2 percent.
    np.testing.assert_allclose(sorted(mixture.weights.tolist()), [0.02, 0.08, 0.2, 0.3, 0.4], atol=0.03)
    for shard, line in enumerate(process.stdout.splitlines()[-3:]):
        clusters = np.load(folder / f"{shard:04d}.clusters.npy")
        assert line.startswith(f"{shard:04d}.clusters.npy: sizes {np.bincount(clusters['label']).tolist()}")
        assert np.load(folder / f"{shard:04d}.npy").shape == (len(clusters), 16)


def test_few_labels(run, capsys):
    names = run("few_labels", "--seeds", "1", "--steps", "25")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "seed 0, without the cluster loss",
        "seed 0, with the cluster loss",
    ]
    _, y, _, test_y = names["long_tailed"](0)
    assert y.bincount().tolist()[0] == 110
    assert set(test_y.bincount().tolist()) == {64, 65}
