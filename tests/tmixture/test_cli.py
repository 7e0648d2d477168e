"""The command line: what it writes, what it refuses, and that it goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tmixture import StudentTMixture, __version__, commands, shards
from tmixture.cli import main

D, N = 5, 700


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


def run(*arguments):
    return main([str(argument) for argument in arguments])


def fit_in(folder, *more):
    output = folder.parent / "mixture.safetensors"
    return output, run("fit", folder, "-k", 3, "-o", output, *more)


def stored(rows):
    """The rows as the folder holds them."""
    x = torch.as_tensor(rows)
    return torch.cat([x[:1000], x[1000:].bfloat16().float()])


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


def test_a_second_run_leaves_everything_as_it_is(folder, capsys):
    path, _ = fit_in(folder)
    run("predict", path, folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (path, *folder.iterdir())}
    assert fit_in(folder) == (path, 0)  # the clusters in the folder are no embeddings
    assert run("predict", path, folder) == 0
    assert "3 of 3 files were there already" in capsys.readouterr().err
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (path, *folder.iterdir())} == before


def test_clusters_in_another_folder(folder):
    path, _ = fit_in(folder)
    assert run("predict", path, folder / "a.npy", "--output-dir", folder / "deep" / "down") == 0
    assert sorted(p.name for p in (folder / "deep" / "down").iterdir()) == ["a.clusters.json", "a.clusters.npy"]


def test_outputs_of_something_else_are_not_trusted(folder, rows, capsys):
    path, _ = fit_in(folder)
    run("predict", path, folder)
    assert fit_in(folder, "--dof", "9")[1] == 2
    assert "dof=[4.0, 4.0, 4.0] and not [9.0, 9.0, 9.0]" in capsys.readouterr().err
    before = (folder / "a.clusters.npy").read_bytes()
    np.save(folder / "a.npy", -rows[:500])
    assert run("predict", path, folder) == 2
    assert "a.clusters.npy is there already" in capsys.readouterr().err
    assert (folder / "a.clusters.npy").read_bytes() == before
    np.save(folder / "b.clusters.npy", np.zeros(3))
    assert run("predict", path, folder / "a.npy", "--overwrite") == 0
    assert (folder / "a.clusters.npy").read_bytes() != before
    np.save(folder / "a.npy", rows[:400])
    assert fit_in(folder)[1] == 2
    assert "of another fit, with files that have changed since" in capsys.readouterr().err
    assert fit_in(folder, "--overwrite")[1] == 0


def test_an_output_without_its_record_is_somebody_elses(folder, capsys):
    path, _ = fit_in(folder)
    np.save(folder / "c.clusters.npy", np.arange(3))
    assert run("predict", path, folder) == 2
    assert "c.clusters.npy is there already" in capsys.readouterr().err
    assert np.load(folder / "c.clusters.npy").tolist() == [0, 1, 2]
    assert not (folder / "a.clusters.npy").exists()


def test_more_iterations_go_on_from_those_that_were_done(folder, capsys):
    path, status = fit_in(folder, "--max-iter", 2, "--tol", 1e-9)
    assert status == 0
    assert "a larger --max-iter goes on from here" in capsys.readouterr().err
    first = StudentTMixture.load(path)
    assert (first.n_iter_, first.converged_) == (2, False)
    assert fit_in(folder, "--max-iter", 25, "--tol", 0)[1] == 0
    second = StudentTMixture.load(path)
    assert second.n_iter_ == 25
    assert not path.with_name(path.name + ".checkpoint").exists()
    assert second.history_[:3] == pytest.approx(first.history_, rel=1e-6)
    assert (np.diff(second.history_) > -1e-6).all()


@pytest.mark.slow
def test_after_a_kill_the_fit_ends_as_if_nothing_had_been(folder):
    path, _ = fit_in(folder, "--max-iter", 60, "--tol", 0)
    expected = StudentTMixture.load(path)
    path.unlink()
    checkpoint = path.with_name(path.name + ".checkpoint")
    command = [sys.executable, "-m", "tmixture", "fit", folder, "-k3", "-o", path, "--max-iter", "60", "--tol", "0"]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    try:
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not path.exists()
    assert 10 <= StudentTMixture.load(checkpoint).n_iter_ < 60
    assert fit_in(folder, "--max-iter", 60, "--tol", 0)[1] == 0
    resumed = StudentTMixture.load(path)
    torch.testing.assert_close(dict(resumed.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    assert resumed.history_ == expected.history_
    assert not checkpoint.exists()


def interrupt_after(monkeypatch, owner, name, calls):
    """Press Ctrl-C in the call after so many calls of a function."""
    original, count = getattr(owner, name), [0]

    def counting(*arguments, **keywords):
        count[0] += 1
        if count[0] > calls:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize("iterations", [0, 4, 13])
def test_an_interrupted_fit_keeps_what_it_has(folder, iterations, monkeypatch, capsys):
    settings = ("--max-iter", 25, "--tol", 0)  # where it converges, rounding may make it one iteration more
    with monkeypatch.context() as patch:
        interrupt_after(patch, StudentTMixture.fit.__globals__["em"], "maximization", iterations)
        path, status = fit_in(folder, *settings)
    assert status == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not path.exists()
    checkpoint = path.with_name(path.name + ".checkpoint")
    if iterations:
        kept = StudentTMixture.load(checkpoint)
        assert kept.n_iter_ == iterations
        assert len(kept.history_) == iterations + 1
    else:
        assert not checkpoint.exists()
    assert fit_in(folder, *settings) == (path, 0)
    assert not checkpoint.exists()
    resumed = StudentTMixture.load(path)
    fit_in(folder, *settings, "--overwrite")
    assert resumed.history_ == pytest.approx(StudentTMixture.load(path).history_, rel=1e-6)


def test_an_interrupted_prediction_leaves_no_half_of_a_file(folder, rows, monkeypatch):
    path, _ = fit_in(folder)
    mixture = StudentTMixture.load(path)
    mixture.chunk_size = 200
    mixture.save(path)
    with monkeypatch.context() as patch:
        interrupt_after(patch, StudentTMixture, "outlier_weights", 4)  # in the second file
        assert run("predict", path, folder) == 130
    assert sorted(p.name for p in folder.glob("*.clusters.npy")) == ["a.clusters.npy"]
    first = (folder / "a.clusters.npy").stat().st_mtime_ns
    assert run("predict", path, folder) == 0
    assert (folder / "a.clusters.npy").stat().st_mtime_ns == first
    for stem, part in zip("abc", stored(rows).split([500, 500, 400])):
        np.testing.assert_array_equal(np.load(folder / f"{stem}.clusters.npy")["label"], mixture.predict(part))


def test_a_kill_between_the_record_and_the_output(folder, monkeypatch):
    """Even while another output is replaced: it must not pass for the one that the record tells of."""
    path, _ = fit_in(folder)
    run("predict", path, folder / "a.npy")
    fit_in(folder, "--dof", "9", "--overwrite")
    with monkeypatch.context() as patch:
        interrupt_after(patch, os, "replace", 1)
        assert run("predict", path, folder / "a.npy", "--overwrite") == 130
    assert run("predict", path, folder / "a.npy") == 0
    expected = StudentTMixture.load(path).predict(folder / "a.npy")
    np.testing.assert_array_equal(np.load(folder / "a.clusters.npy")["label"], expected)


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


def broken(folder, case):
    """A folder with something wrong in it, and what should be said of it."""
    bad = folder / "z.npy"
    x = np.ones((30, D))
    if case == "missing":
        return folder / "nowhere.npy", "nowhere.npy does not exist"
    if case == "suffix":
        return folder / "notes.txt", "must be a folder or end in one of .npy"
    if case == "empty folder":
        (folder / "inner").mkdir()
        return folder / "inner", "holds no .npy, .npz, .safetensors files of embeddings named *"
    if case == "width":
        np.save(bad, np.ones((30, D + 1)))
        return folder, f"z.npy has shape (30, {D + 1}): at least one row of {D} features is needed"
    if case == "vector":
        np.save(bad, np.ones(30))
        return bad, "z.npy must hold real numbers of shape (N, d), got float64 of shape (30,)"
    if case == "no rows":
        np.save(bad, x[:0])
        return folder, f"z.npy has shape (0, {D})"
    if case == "complex":
        np.save(bad, x * 1j)
        return folder, "got complex128"
    if case == "NaN":
        x[17, 2] = np.nan
        np.save(bad, x)
        return folder, "z.npy must be finite and below 1e15 in magnitude, but row 17 holds nan in column 2"
    if case == "truncated":
        np.save(bad, x)
        bad.write_bytes(bad.read_bytes()[:500])
        return folder, "z.npy cannot be read: "
    if case == "not safetensors":
        (folder / "z.safetensors").write_bytes(b"nonsense")
        return folder, "z.safetensors cannot be read: "
    np.savez(folder / "z.npz", one=x, two=x)
    return folder, "z.npz cannot be read: name one of its arrays (--name): one, two"


CASES = ["missing", "suffix", "empty folder", "width", "vector", "no rows", "complex", "NaN", "truncated"]
CASES += ["not safetensors", "two arrays"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_errors_are_one_line(folder, command, case, capsys):
    path = folder.parent / "mixture.safetensors"
    mixture = StudentTMixture.from_parameters(np.ones(2), np.eye(2, D), np.stack([np.eye(D)] * 2))
    if command == "predict":
        mixture.save(path)
    source, expected = broken(folder, case)
    arguments = ("predict", path, source) if command == "predict" else ("fit", source, "-k", 2, "-o", path)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("tmixture: error: ")
    assert expected in captured.err
    assert path.exists() == (command == "predict")
    assert not (folder / "z.clusters.npy").exists()


def test_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: tmixture" in capsys.readouterr().err


def test_other_errors(folder, capsys):
    path = folder.parent / "mixture.safetensors"
    for arguments, expected in (
        (("fit", folder, "-k", 0, "-o", path), "n_components must be a positive integer"),
        (("fit", folder, "-k", 2, "-o", path, "--device", "abacus"), "--device abacus cannot be used"),
        (("fit", folder, "-k", 2, "-o", path, "--name", "other"), "name one of its arrays (--name): rows"),
        (("predict", path, folder), "mixture.safetensors does not exist"),
        (("describe", folder / "c.safetensors"), "holds no StudentTMixture"),
        (
            ("fit", folder / "c.safetensors", "-k", 2, "-o", path, "--covariance", "round"),
            "covariance_type must be one of",
        ),
        (("describe", folder), "holds no StudentTMixture: it is a folder"),
        (("fit", folder, "-k", 2, "-o", folder), "holds no StudentTMixture: it is a folder"),
    ):
        assert run(*arguments) == 2
        assert expected in capsys.readouterr().err
    fit_in(folder)
    (folder / "inner").mkdir()
    np.save(folder / "inner" / "a.npy", np.ones((3, D)))
    capsys.readouterr()
    assert run("predict", path, folder / "a.npy", folder / "inner", "--output-dir", folder) == 2
    assert "would both be written to" in capsys.readouterr().err


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


def test_files_that_changed_but_kept_their_shape_are_noticed(folder, rows, capsys):
    path, _ = fit_in(folder)
    before = path.read_bytes()
    np.save(folder / "a.npy", -rows[:500])
    assert fit_in(folder)[1] == 2
    assert "of another fit, with files that have changed since: give another --output" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.rename(path.with_name(path.name + ".checkpoint"))
    assert fit_in(folder)[1] == 2
    assert fit_in(folder, "--overwrite")[1] == 0


def test_a_mixture_of_another_origin_is_not_continued(folder, capsys):
    path, _ = fit_in(folder)
    StudentTMixture.load(path).save(path)
    assert fit_in(folder)[1] == 2
    assert "normalize=None and not False" in capsys.readouterr().err


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


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_errors_leave_no_partial_files(folder, command, monkeypatch):
    path, _ = fit_in(folder)

    def full(*args, **settings):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        if command == "fit":
            patch.setattr("tmixture.files.os.replace", full)
            assert fit_in(folder, "--overwrite")[1] == 2
        else:
            patch.setattr(commands.os, "replace", full)
            assert run("predict", path, folder) == 2
    assert not list(folder.parent.rglob("*.partial"))


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
