"""Warnings on the line of code that a user can change."""

from __future__ import annotations

import os
import sys
import warnings

import torch

# Frames that no user wrote: this package, and torch between it and the caller of a module.
SKIPPED = tuple(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__))


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn on behalf of the innermost line of code outside this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(SKIPPED):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
