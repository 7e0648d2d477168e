import pytest

from .torchvision_stub import make_importable


@pytest.fixture(scope="session", autouse=True)
def importable_torchvision():
    make_importable()
