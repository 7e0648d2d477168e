"""Distances stay exact where a training has lowered the precision of its products."""

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from threading import Event, Thread

import pytest
import torch

from tmixture import StudentTMixture
from tmixture.density import Density
from tmixture.precision import exact_arithmetic, full_precision

CUDA, CPU = torch.device("cuda"), torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:.*CUDA is not available")


@pytest.fixture(params=["highest", "high", "medium"])
def lowered(request):
    """What a training sets its products to."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def settings():
    return [getattr(torch.backends, name).matmul.fp32_precision for name in ("cuda", "mkldnn")]


def test_what_torch_was_told_does_not_reach_the_mixture(lowered, monkeypatch):
    before, seen = settings(), []
    mahalanobis = Density.mahalanobis

    def spy(density, features):
        seen.append(settings()[1])
        return mahalanobis(density, features)

    monkeypatch.setattr(Density, "mahalanobis", spy)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mixture = StudentTMixture(2, 3, generator=0).fit(x)
    for ask in (mixture.partial_fit, mixture.predict, mixture.score, mixture, mixture.log_prob):
        ask(x)
    mixture.outlier_weights(x)
    mixture.component_log_prob(x)
    assert len(seen) > 8
    assert set(seen) <= {"ieee", "none"}
    assert settings() == before
    assert torch.get_float32_matmul_precision() == lowered


@pytest.mark.parametrize("block", [full_precision, exact_arithmetic])
@pytest.mark.parametrize("allow_tf32", [False, True])
def test_tf32_is_for_those_who_ask(lowered, block, allow_tf32):
    before = settings()
    with block(CUDA, allow_tf32=allow_tf32):
        assert settings()[0] in ({"tf32"} if allow_tf32 else {"ieee", "none"})
    with block(CPU, allow_tf32=allow_tf32):
        assert settings()[1] in {"ieee", "none"}
    assert settings() == before


def test_an_error_leaves_torch_as_it_was(lowered):
    before = settings()
    with pytest.raises(KeyError), full_precision(CUDA, allow_tf32=True):
        raise KeyError
    assert settings() == before


def test_older_versions_of_torch_have_one_setting_for_all(lowered, monkeypatch):
    monkeypatch.setattr("torch.backends.cuda.matmul", object())
    with full_precision(CUDA):
        assert torch.get_float32_matmul_precision() == "highest"
    with full_precision(CUDA, allow_tf32=True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == lowered


def running(block):
    """Enter a block in a thread of its own; returns what makes the thread leave it."""
    inside, leave = Event(), Event()

    def run():
        with block:
            inside.set()
            leave.wait(60)

    thread = Thread(target=run)
    thread.start()
    assert inside.wait(60)

    def end():
        leave.set()
        thread.join(60)

    return end


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("ends", list(permutations(range(3))))
def test_threads_leave_torch_as_it_was_in_whatever_order_they_end(lowered, ends, older, monkeypatch):
    if older:
        monkeypatch.setattr("torch.backends.cuda.matmul", object())

    def now():
        return torch.get_float32_matmul_precision() if older else settings()[0]

    before = now()
    wanted = [False, True, False]
    leave = [running(full_precision(CUDA, allow_tf32=allow_tf32)) for allow_tf32 in wanted]
    for i in ends:
        assert now() in {"ieee", "none", "highest"} or all(wanted)
        leave[i]()
        wanted[i] = True  # as if it had nothing against it
    assert now() == before


def test_a_block_within_another_has_what_it_asks_for(lowered):
    before = settings()
    with full_precision(CUDA):
        with full_precision(CUDA, allow_tf32=True):
            assert settings()[0] == "tf32"
        assert settings()[0] in {"ieee", "none"}
    assert settings() == before


def test_what_torch_is_told_meanwhile_is_for_afterwards():
    with full_precision(CPU):
        torch.set_float32_matmul_precision("medium")
        wanted = settings()
        with full_precision(CPU):
            assert settings()[1] == "ieee"
        assert settings()[1] == "ieee"
    assert settings() == wanted
    torch.set_float32_matmul_precision("highest")


def test_concurrent_fits_leave_torch_as_it_was(lowered):
    before = settings(), torch.get_float32_matmul_precision()
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))

    def fit(seed):
        return StudentTMixture(3, 3, generator=seed, max_iter=5 + seed, tol=0.0).fit(x).predict(x)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(fit, range(12)))
    assert (settings(), torch.get_float32_matmul_precision()) == before
    for seed, labels in enumerate(together):
        assert torch.equal(labels, fit(seed))
