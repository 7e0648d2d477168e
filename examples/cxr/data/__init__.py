"""A cohort on disk and what is read of it: labels, images, splits, captions, texts.

A reader turns a folder of images and a label file into a `Cohort`. A module of this folder that has one says its name
in `READERS`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module

from cxr.data.cohort import Cohort

Reader = Callable[..., Cohort]
"""From the folder of images and the label file, both paths, and `views`, as `cohort.read_cohort`."""

READERS: dict[str, Reader] = {}
for module in pkgutil.iter_modules(__path__):
    READERS.update(getattr(import_module(f"{__name__}.{module.name}"), "READERS", {}))
