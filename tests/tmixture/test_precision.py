"""Distances stay exact where a training has lowered the precision of its products."""

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
