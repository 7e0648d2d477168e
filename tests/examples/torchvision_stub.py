"""Makes torchvision importable beside a torch that it was not built for, for example a CPU-only one.

Its import registers fake kernels for two operators of its compiled extension and stops where that did not load.
transformers and open_clip import torchvision but call neither, so declaring the two is enough. As a program it does so,
and then runs the script that follows: `python torchvision_stub.py SCRIPT ARGUMENTS`.
"""

import importlib
import importlib.util
import runpy
import sys

import torch

DECLARATIONS = torch.library.Library("torchvision", "FRAGMENT")  # they last as long as this object


def make_importable():
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            DECLARATIONS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


if __name__ == "__main__":
    make_importable()
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
