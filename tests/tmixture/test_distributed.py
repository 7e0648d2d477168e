"""Two processes with a share of the data each end with the parameters of one process with all of it, or all fail."""

import signal

import numpy as np
import pytest
import torch
from tests.processes import run_ranks

from tmixture import StudentTMixture

from . import process

pytestmark = pytest.mark.slow


def results_of(task, folder):
    """What both processes return from a task."""
    assert run_ranks(process.main, process.WORLD, folder, task) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(process.WORLD)]


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    return results_of("equality", tmp_path_factory.mktemp("equality"))


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return results_of("failing", tmp_path_factory.mktemp("failing"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_processes_are_one(equal, dtype, tmp_path):
    first, second = (results[dtype] for results in equal)
    x = process.rows(dtype)[0]
    base = 1e-6 if dtype == torch.float32 else 1e-10
    for name, mixture in process.fits(None, dtype, tmp_path):
        alone = process.answers(mixture, x)
        assert first[name].keys() == second[name].keys() == alone.keys(), name
        for key, value in alone.items():
            np.testing.assert_array_equal(first[name][key], second[name][key], err_msg=f"{name}: {key} differs by rank")
            if name == "many components":  # which rows re-seed it is drawn otherwise; the rest of it still has to hold
                continue
            size = max(float(np.abs(value).max(initial=0)), 0.1)  # small values are differences of numbers like 1
            # Factors that these data do not have are found all the same, and magnify rounding. Moments are taken about
            # a point that differs in its last digit, too. And a large ν hardly shows in the density it is learned from.
            tolerance = base * (100 if "lowrank" in name else 10 if "running." in key or key == "dof" else 1)
            np.testing.assert_allclose(
                first[name][key], value, rtol=tolerance, atol=tolerance * size, err_msg=f"{name}: {key}"
            )
        assert np.isfinite(first[name]["means"]).all()


def test_all_rows_are_equally_likely_in_the_sample_that_a_fit_starts_from(equal):
    first, second = (results["samples"] for results in equal)
    assert torch.equal(first, second)
    assert (first.diff(dim=1) > 0).all()  # in their order, none twice
    counts = (first >= 900).sum(1)  # hypergeometric
    error = (1000 - 50) / (1000 - 1) * 50 * 0.1 * 0.9
    assert abs(counts.double().mean() - 5) < 4 * (error / len(counts)) ** 0.5
    assert 0.5 * error < counts.double().var() < 1.5 * error


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("NaN", "ValueError: data must be finite and below 1e15 in magnitude, but row 17 holds nan in column 2"),
        ("width", "ValueError: data has 3 features, but the mixture has n_features=4"),
        ("dtype", "ValueError: data must hold real numbers, got dtype torch.complex64"),
        ("path", "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.npy'"),
        ("weights", "ValueError: sample_weight must be finite and not negative, but entry 0 is -1.0"),
        ("labels", "ValueError: labels must lie in 0 … 2, got values from 0 to 99"),
        ("file that ends", "OSError: disk on fire"),
        ("Ctrl-C", "KeyboardInterrupt: "),
        ("no memory", "MemoryError: "),
        ("batch, NaN", "ValueError: data must be finite and below 1e15 in magnitude, but row 17 holds nan in column 2"),
        ("batch, width", "ValueError: data has 3 features, but the mixture has n_features=4"),
        ("score, NaN", "ValueError: data must be finite and below 1e15 in magnitude, but row 17 holds nan in column 2"),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_an_error_in_one_process_is_an_error_in_all(failed, call, error, started):
    """The process that fails raises its own error, the other one quotes it, and nothing has changed in either."""
    first, second = (results[call, started] for results in failed)
    assert second == (error, True)
    assert first == (f"RuntimeError: rank 1 failed: {error.removesuffix(': ')}", True)


@pytest.mark.parametrize(
    ("call", "errors"),
    [
        ("both, width", [f"ValueError: data has {d} features, but the mixture has n_features=4" for d in (2, 3)]),
        (
            "too few rows",
            ["TooFewRowsError: data has 1 rows with positive weight, but n_components=3 needs at least"] * 2,
        ),
        ("no rows", ["ValueError: data is empty in all processes"] * 2),
        (
            "other settings",
            ["RuntimeError: the processes have lost step: rank 0 sums 30 × 1 numbers; rank 1 sums 40 × 1 numbers"] * 2,
        ),
        ("other call", ["RuntimeError: the processes have lost step: rank 0 sums 3 × 1 numbers; rank 1 sums"] * 2),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_errors_that_concern_all_processes(failed, call, errors, started):
    for rank, error in enumerate(errors):
        found, same = failed[rank][call, started]
        assert found.startswith(error)
        assert same


def test_a_process_that_dies_is_named(tmp_path):
    assert run_ranks(process.main, process.WORLD, tmp_path, "lost") == [0, -signal.SIGKILL]
    message, cause, fitted = torch.load(tmp_path / "0.pt")
    assert message.startswith("a process of the group stopped answering (rank: 1): it died, or took longer than")
    assert issubclass(getattr(torch.distributed, cause, RuntimeError), RuntimeError)
    assert not fitted


def test_without_a_process_group_nothing_is_waited_for():
    x = process.rows(torch.float32)[0]
    one = StudentTMixture(3, 4, distributed=True, generator=0).fit(x).partial_fit(x[:50])
    other = StudentTMixture(3, 4, generator=0).fit(x).partial_fit(x[:50])
    assert torch.equal(one.means, other.means)
    assert one.score(x) == other.score(x)
