"""The arms of the experiment, by name: those of the `ARMS` of every module in this folder."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from cxr.training.arm import Arm
from cxr.training.arms.paper import ABLATION, MAIN, VARIANTS
from cxr.training.arms.paper import ARMS as PAPER_ARMS
from cxr.training.arms.table2 import TABLE2

GROUPS: dict[str, dict[str, Arm]] = {"main": MAIN, "table2": {**MAIN, **TABLE2}}
"""Names that stand for several arms."""

ARMS: dict[str, Arm] = dict(PAPER_ARMS)
for module in pkgutil.iter_modules(__path__):
    if module.name != "paper":
        ARMS.update(import_module(f"{__name__}.{module.name}").ARMS)

__all__ = ["ABLATION", "ARMS", "GROUPS", "MAIN", "TABLE2", "VARIANTS", "Arm"]
