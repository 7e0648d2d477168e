"""Warnings on the line of code that a user can change, each once."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar

import torch

# Frames that no user wrote: this package, torch between it and the caller of a module, and the ends of blocks.
SKIPPED = (*(os.path.dirname(file) + os.sep for file in (__file__, torch.__file__)), contextlib.__file__)

_waiting: ContextVar[Counter[tuple[str, type[Warning]]] | None] = ContextVar("waiting", default=None)


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn on behalf of the innermost line of code outside this package; within `each_once` at its end."""
    waiting = _waiting.get()
    if waiting is not None:
        waiting[message, category] += 1
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(SKIPPED):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextlib.contextmanager
def each_once() -> Iterator[None]:
    """A block whose warnings come at its end, each once, and say how often it would have come."""
    waiting: Counter[tuple[str, type[Warning]]] = Counter()
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        for (message, category), times in waiting.items():
            warn(message if times == 1 else f"{message} ({times} times)", category)
