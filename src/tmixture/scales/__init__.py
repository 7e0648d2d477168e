"""Scale structures: one small class per file, all behind `Scale`; a new file in this folder is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from tmixture.scales.base import STRUCTURES, Scale

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STRUCTURES", "Scale"]
