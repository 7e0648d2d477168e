import importlib
import importlib.util

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def importable_torchvision():
    """Makes torchvision importable beside a torch that it was not built for, for example a CPU-only one.

    Its import registers fake kernels for two operators of its compiled extension and stops where that did not load.
    transformers and open_clip import torchvision but call neither, so declaring the two is enough.
    """
    if importlib.util.find_spec("torchvision") is None:
        yield
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")  # the declarations last as long as this object
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    yield
