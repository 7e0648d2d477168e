"""The command line goes on where it was stopped, from the keyboard or by a kill."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tests.tmixture.cli.helpers import fit_in, run, stored

from tmixture import StudentTMixture, em


def test_a_second_run_leaves_everything_as_it_is(folder, capsys):
    path, _ = fit_in(folder)
    run("predict", path, folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (path, *folder.iterdir())}
    assert fit_in(folder) == (path, 0)  # the clusters in the folder are no embeddings
    assert run("predict", path, folder) == 0
    assert "3 of 3 files were there already" in capsys.readouterr().err
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (path, *folder.iterdir())} == before


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
        interrupt_after(patch, em, "maximization", iterations)
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
