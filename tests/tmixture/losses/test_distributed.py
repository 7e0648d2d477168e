"""Two processes (gloo) do together what one process does with the joined batch."""

import pytest
import torch
from tests.processes import run_ranks

from . import process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes and a single one come to."""
    folder = tmp_path_factory.mktemp("processes")
    assert run_ranks(process.main, process.WORLD, folder) == [0, 0]
    return [*(torch.load(folder / f"{rank}.pt") for rank in range(process.WORLD)), process.everything(0, 1)]


@pytest.mark.parametrize(
    "name", [f"{task} {name}" for task in ("train", "stream", "known") for name in process.SETTINGS]
)
def test_state_is_the_same_in_all_processes_and_that_of_one_process(results, name):
    first, second, single = (result[name]["state"] for result in results)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", process.SETTINGS)
def test_loss_and_gradients_in_the_wrapper_are_those_of_the_joined_batch(results, name):
    """`DistributedLossWrapper` multiplies the loss by the number of processes, and gathers without gradient: averaged
    over processes, as `DistributedDataParallel` does, the gradients are those of one process."""
    first, second, single = (result[f"train {name}"]["steps"] for result in results)
    assert sum(float(step["loss"]) > 0 for step in single) >= 3
    torch.testing.assert_close(first, single, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(second, single, rtol=1e-3, atol=1e-5)


def test_processes_may_bring_different_numbers_of_rows_and_skip_some(results):
    first, second, single = (result["uneven"]["state"] for result in results)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("NaN", "ValueError: embeddings must be finite, but 24 rows hold NaN or infinity"),
        ("width", "ValueError: embeddings have shape (24, 4), but the mixture has n_features=6"),
        ("dimension", "ValueError: embeddings must have shape (B, d), got (6,)"),
        ("epoch, NaN", "ValueError: data must be finite and below 1e15 in magnitude, but row 0 holds nan in column 0"),
        ("epoch, width", "ValueError: data has 4 features, but the mixture has n_features=6"),
        ("epoch, interrupt", "KeyboardInterrupt"),
    ],
)
def test_an_error_in_one_process_is_an_error_in_all(results, call, error):
    """The other one quotes it, and nothing has changed in either."""
    for policy in process.SETTINGS:
        first, second = (result["failing"][f"{policy}: {call}"] for result in results[:2])
        assert second["error"].startswith(error), policy
        assert first["error"] == f"RuntimeError: rank 1 failed: {second['error'].removesuffix(': ')}"
        assert first["same"]
        assert second["same"]


@pytest.mark.parametrize("name", process.SETTINGS)
def test_a_checkpoint_that_one_process_has_loaded_is_everyones(results, name):
    """`DistributedDataParallel` sends what the first process holds to the others."""
    first, second = (result[f"checkpoint {name}"] for result in results[:2])
    assert all(first["same"].values()), [key for key, same in first["same"].items() if not same]
    assert all(second["same"].values()), [key for key, same in second["same"].items() if not same]
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    torch.testing.assert_close(first["grad"], second["grad"], rtol=0, atol=0)


def test_a_mixture_that_is_not_shared_is_refused(results):
    for result in results[:2]:
        assert "make it with distributed=True" in result["alone"]["error"]
