"""State that an error leaves as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def restored_after_errors(module: nn.Module) -> Iterator[None]:
    """A block after whose error the buffers and attributes of a module and its parts are what they were.

    They must be replaced in the block and not changed in place, as all of this package's are.
    """
    before = [(part, dict(part.__dict__), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    except BaseException:
        for part, attributes, buffers in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
        raise
