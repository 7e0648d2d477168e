"""`save` and `load`: everything comes back, nothing executes, nothing half-written is trusted."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.processes import FORKED

from tmixture import PowerDecay, StudentTMixture

from .helpers import STRUCTURES, of


def rows(n=300, d=3, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
        assert tensor.dtype == other.state_dict()[name].dtype, name
    hidden = {"training", "init"} | {name for name in vars(one) if name.startswith("_")}
    for name in vars(one).keys() - hidden:
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_comes_back(structure, dtype, tmp_path):
    x = rows(dtype=dtype)
    settings = dict(
        **of(structure), dof=9.0, learn_dof="component", dof_bounds=(1.0, 50.0), reg_covar=1e-3, n_init=2,
        max_iter=7, tol=1e-3, scale_update="classic", step_size=PowerDecay(0.9, 3.0), chunk_size=100,
        allow_tf32=True, generator=5,
    )  # fmt: skip
    mixture = StudentTMixture(3, 3, dtype=dtype, **settings).fit(x)
    mixture.save(tmp_path / "mixture.safetensors")
    loaded = StudentTMixture.load(tmp_path / "mixture.safetensors")
    assert_same(mixture, loaded)
    assert torch.equal(loaded.log_prob(x), mixture.log_prob(x))
    assert_same(mixture.partial_fit(x[:20]), loaded.partial_fit(x[:20]))
    assert_same(mixture.fit(x), loaded.fit(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"dof": float("inf")},
        {"dof": [1.0, float("inf"), 4.0]},
        {"init": torch.arange(9.0).reshape(3, 3)},
        {"step_size": 0.1, "warm_start": True, "learn_dof": "shared"},
        {"dtype": torch.float16},
    ],
)
@pytest.mark.parametrize("seen", [0, 2, 10, 300])
def test_any_settings_at_any_time(settings, seen, tmp_path):
    mixture = StudentTMixture(3, 3, generator=1, **settings)
    if seen:
        mixture.partial_fit(rows()[:seen])
    mixture.save(tmp_path / "m")
    loaded = StudentTMixture.load(tmp_path / "m")
    assert_same(mixture, loaded)
    if isinstance(mixture.init, torch.Tensor):
        assert torch.equal(loaded.init, mixture.init)
    assert_same(mixture.partial_fit(rows(seed=1)), loaded.partial_fit(rows(seed=1)))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("dof", [4.0, [float("inf"), 2.0]])
def test_what_gradients_trained_comes_back_as_if_fitted(structure, dof, tmp_path):
    x = rows(dtype=torch.float64)
    mixture = StudentTMixture(2, 3, dof=dof, **of(structure), generator=0, dtype=torch.float64)
    mixture = mixture.partial_fit(x).train_by_gradients()
    optimizer = torch.optim.Adam(mixture.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-mixture.log_prob(x).mean()).backward()
        optimizer.step()
    mixture.save(tmp_path / "m")
    loaded = StudentTMixture.load(tmp_path / "m")
    assert torch.equal(loaded.log_prob(x), mixture.log_prob(x))
    assert list(loaded.parameters()) == []
    again = StudentTMixture.load(tmp_path / "m").train_by_gradients()
    torch.testing.assert_close(again.log_prob(x), mixture.log_prob(x), rtol=1e-10, atol=1e-10)
    assert_same(loaded.partial_fit(x[:50]), StudentTMixture.load(tmp_path / "m").partial_fit(x[:50]))
    torch.testing.assert_close(mixture.partial_fit(x[:50]).log_prob(x), loaded.log_prob(x), rtol=1e-9, atol=1e-9)


def test_a_step_size_that_is_a_function_cannot_be_saved(tmp_path):
    mixture = StudentTMixture(3, 3, step_size=lambda t: 1 / t).fit(rows())
    with pytest.raises(ValueError, match="step_size is a function"):
        mixture.save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"other\.safetensors holds no StudentTMixture"):
        StudentTMixture.load(path)
    with pytest.raises(FileNotFoundError):
        StudentTMixture.load(tmp_path / "missing")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "mixture.safetensors"
    StudentTMixture(3, 3, generator=0).fit(rows()).save(path)
    content = path.read_bytes()
    for damaged in (content[:-100], content[:50], b"", b"\x80\x04" + content[2:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole safetensors file"):
            StudentTMixture.load(path)


def test_the_settings_are_plain_json(tmp_path):
    StudentTMixture(3, 3, generator=0).fit(rows()).save(tmp_path / "m")
    with safe_open(tmp_path / "m", framework="pt") as file:
        assert json.loads(file.metadata()["settings"])["n_components"] == 3


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mixture.safetensors"
    old = StudentTMixture(3, 3, generator=0).fit(rows())
    old.save(path)

    def full_disk(*args, **kwargs):
        (tmp_path / "mixture.safetensors.partial").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("tmixture.files.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        StudentTMixture(3, 3, generator=1).fit(rows(seed=1)).save(path)
    assert_same(old, StudentTMixture.load(path))


def save_for_ever(path):
    torch.set_num_threads(1)
    mixtures = [StudentTMixture(20, 200, generator=seed).fit(rows(400, 200, seed)) for seed in (0, 1)]
    while True:
        for mixture in mixtures:
            mixture.save(path)


@pytest.mark.slow
def test_a_killed_write_leaves_a_whole_file(tmp_path):
    path = tmp_path / "mixture.safetensors"
    process = FORKED.Process(target=save_for_ever, args=(path,), daemon=True)
    process.start()
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    x = rows(10, 200)
    assert StudentTMixture.load(path).log_prob(x).isfinite().all()
    # and a left-over is no obstacle
    StudentTMixture(3, 3, generator=0).fit(rows()).save(path)
    assert StudentTMixture.load(path).n_components == 3
