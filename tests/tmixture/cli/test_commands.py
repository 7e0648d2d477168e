"""The command line: what it writes and says."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.tmixture.cli.helpers import D, N, fit_in, run, stored

from tmixture import StudentTMixture, __version__
from tmixture.cli import main
from tmixture.data import shards


def test_the_fit_is_that_of_the_library(folder, rows):
    path, status = fit_in(folder, "--covariance", "full", "--dof", "6")
    assert status == 0
    fitted = StudentTMixture.load(path)
    expected = StudentTMixture(3, D, covariance_type="full", dof=6.0, generator=0).fit(stored(rows))
    assert fitted.converged_
    torch.testing.assert_close(fitted.means, expected.means, rtol=1e-3, atol=1e-3)
    assert fitted.history_[-1] == pytest.approx(expected.history_[-1], rel=1e-5)
    assert len(fitted.history_) == fitted.n_iter_ + 1
    assert (fitted.max_iter, fitted.warm_start) == (100, False)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["embeddings", "mixture.safetensors"]


def test_scales_of_low_rank(folder, capsys):
    assert fit_in(folder, "--covariance", "lowrank")[1] == 2
    assert "needs a rank" in capsys.readouterr().err
    path, status = fit_in(folder, "--covariance", "lowrank", "--rank", 2)
    assert status == run("describe", path) == run("predict", path, folder) == 0
    assert StudentTMixture.load(path).rank == 2


def test_clusters_are_written_next_to_every_file(folder, rows, capsys):
    path, _ = fit_in(folder)
    capsys.readouterr()
    assert run("predict", path, folder) == 0
    outputs = [folder / f"{stem}.clusters.npy" for stem in "abc"]
    assert capsys.readouterr().out.split() == [str(output) for output in outputs]
    clusters = np.concatenate([np.load(output) for output in outputs])
    mixture, x = StudentTMixture.load(path), stored(rows)
    labels = mixture.predict(x)
    np.testing.assert_array_equal(clusters["label"], labels)
    np.testing.assert_allclose(clusters["confidence"], mixture(x).amax(1), rtol=1e-6)
    np.testing.assert_allclose(clusters["outlier_weight"], mixture.outlier_weights(x)[range(2 * N), labels], rtol=1e-6)
    assert not list(folder.glob("*.partial"))


def test_clusters_in_another_folder(folder):
    path, _ = fit_in(folder)
    assert run("predict", path, folder / "a.npy", "--output-dir", folder / "deep" / "down") == 0
    assert sorted(p.name for p in (folder / "deep" / "down").iterdir()) == ["a.clusters.json", "a.clusters.npy"]


def test_a_description(folder, capsys):
    path, _ = fit_in(folder)
    capsys.readouterr()
    mixture = StudentTMixture.load(path)
    assert run("describe", path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    components = told.pop("components")
    pi = mixture.weights.double().numpy()
    assert told == {
        "n_components": 3,
        "n_features": D,
        "covariance_type": "diag",
        "n_free_parameters": 2 + 3 * D + 3 * D,
        "iterations": mixture.n_iter_,
        "converged": True,
        "log_likelihood": mixture.history_[-1],
        "effective_components": pytest.approx(np.exp(-(pi * np.log(pi)).sum())),
        "rows": 2 * N,
    }
    variances = mixture.scales.diagonal(dim1=1, dim2=2).mean(1)
    for k, component in enumerate(components):
        assert component == {
            "component": k,
            "weight": pytest.approx(pi[k]),
            "rows": pytest.approx(2 * N * pi[k], rel=0.01),
            "outlier_weight": pytest.approx(1, abs=0.01),
            "dof": 4.0,
            "spread": pytest.approx(float(variances[k]) ** 0.5),
        }
    assert run("describe", path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"converged after {mixture.n_iter_} iterations")
    assert [int(line.split()[0]) for line in lines[-3:]] == [0, 1, 2]


def test_a_description_of_a_gaussian_mixture_that_was_given(tmp_path, capsys):
    StudentTMixture.from_parameters([1.0], np.zeros((1, 2)), np.eye(2)[None], dof=np.inf).save(tmp_path / "m")
    assert run("describe", tmp_path / "m", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["components"] == [{"component": 0, "weight": 1.0, "dof": "inf", "spread": 1.0}]
    assert run("describe", tmp_path / "m") == 0
    assert "not from a fit" in capsys.readouterr().out


def test_an_array_of_several_is_named(folder, rows):
    np.savez(folder / "b.npz", rows=rows[500:1000], other=rows[:3])
    assert fit_in(folder, "--name", "rows")[1] == 0


def test_large_files_are_mapped_and_read_in_blocks(folder, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_ROWS", 64)
    assert isinstance(shards.open_rows(folder / "a.npy"), np.memmap)
    data = shards.Shards(shards.find([folder], "*", None)[0])
    for _ in range(2):
        blocks = list(data)
        assert max(len(block) for block in blocks) == 64
        assert sum(len(block) for block in blocks) == len(data) == 2 * N


def test_what_is_no_embeddings_in_a_folder_is_left_out_and_told_of(folder, rows, capsys):
    path, _ = fit_in(folder)
    expected = StudentTMixture.load(path)
    np.save(folder / "labels.npy", np.arange(2 * N))
    expected.save(folder / "another.safetensors")
    inside = folder / "own.safetensors"
    for _ in range(2):
        assert run("fit", folder, "-k", 3, "-o", inside) == 0
        told = capsys.readouterr().err
        assert f"{folder / 'labels.npy'} left out: it holds an array of shape ({2 * N},)\n" in told
        assert f"{folder / 'another.safetensors'} left out: it is a mixture\n" in told
    assert torch.equal(StudentTMixture.load(inside).means, expected.means)
    assert run("fit", folder / "another.safetensors", "-k", 3, "-o", path, "--overwrite") == 2
    assert "another.safetensors is a mixture and holds no embeddings" in capsys.readouterr().err


def test_a_pattern_chooses_files(folder, rows):
    path, status = fit_in(folder, "--pattern", "[ab].np?")
    assert status == run("predict", path, folder, "--pattern", "a*") == 0
    assert float(StudentTMixture.load(path).running.total_weight) == 1000
    assert [p.name for p in folder.glob("*.clusters.npy")] == ["a.clusters.npy"]


def test_normalized_rows_are_normalized_in_predict_too(folder, rows, capsys):
    path, status = fit_in(folder, "--normalize")
    assert status == run("predict", path, folder) == run("describe", path) == 0
    assert "fitted to rows divided by their norm" in capsys.readouterr().out
    mixture = StudentTMixture.load(path)
    assert (mixture.means.norm(dim=1) < 1).all()
    directions = torch.nn.functional.normalize(torch.as_tensor(rows[:500]), dim=1)
    np.testing.assert_array_equal(np.load(folder / "a.clusters.npy")["label"], mixture.predict(directions))
    assert fit_in(folder)[1] == 2
    assert "normalize=True and not False" in capsys.readouterr().err


def test_settings_are_passed_on(folder):
    path, status = fit_in(
        folder, "--n-init", 2, "--max-candidates", 2, "--reg-covar", 0.01, "--chunk-size", 100, "--init", "random"
    )
    assert status == 0
    mixture = StudentTMixture.load(path)
    found = (mixture.n_init, mixture.max_candidates, mixture.reg_covar, mixture.chunk_size, mixture.init)
    assert found == (2, 2, 0.01, 100, "random")


def test_help_does_not_wait_for_torch():
    code = "import sys; from tmixture import cli; cli.parser().format_help(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_shows_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "None" not in told
    assert "(default: 4.0)" in told
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"tmixture {__version__}\n"


@pytest.mark.slow
def test_as_a_program(folder):
    """Exit status and streams, and no traceback."""
    program = [sys.executable, "-m", "tmixture"]
    path, _ = fit_in(folder)
    done = subprocess.run([*program, "describe", path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("StudentTMixture(n_components=3")
    assert done.stderr == ""
    failed = subprocess.run([*program, "fit", folder / "x.npy", "-k3", "-o", path], capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == f"tmixture: error: {folder / 'x.npy'} does not exist\n"


def test_a_background_and_missing_values(folder, capsys):
    x = np.load(folder / "a.npy").astype(np.float64)
    x[::5] = 40 * np.random.default_rng(0).normal(size=x[::5].shape)
    x[1::7, 0] = np.nan
    np.save(folder / "a.npy", x)
    assert fit_in(folder, "--background")[1] == 2
    assert "holds nan in column 0" in capsys.readouterr().err
    assert fit_in(folder, "--normalize", "--allow-missing")[1] == 2
    assert "have no norm" in capsys.readouterr().err
    path, status = fit_in(folder, "--background", "--allow-missing")
    assert status == run("predict", path, folder / "a.npy") == 0
    mixture, clusters = StudentTMixture.load(path), np.load(folder / "a.clusters.npy")
    np.testing.assert_array_equal(clusters["label"], mixture.predict(x))
    assert (clusters["label"][::5] == -1).mean() > 0.7
    np.testing.assert_allclose(clusters["confidence"], mixture(torch.as_tensor(x)).amax(1), rtol=1e-5)
