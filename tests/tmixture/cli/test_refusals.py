"""The command line: what it refuses, in one line, and that nothing is lost by it."""

import numpy as np
import pytest
from tests.tmixture.cli.helpers import D, fit_in, run

from tmixture import StudentTMixture, commands
from tmixture.cli import main


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
        return folder / "inner", " files of embeddings named *"
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


def test_a_number_of_iterations_is_positive(folder, capsys):
    with pytest.raises(SystemExit):
        run("fit", folder, "-k", 2, "-o", folder / "m", "--checkpoint-every", 0)
    assert "a positive integer is needed, got 0" in capsys.readouterr().err


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
