"""Progress bars that a log file can hold."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# Seconds between two lines of a bar in a file; on a screen it moves ten times a second.
SECONDS_IN_A_FILE = 60.0


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> tqdm[Any]:
    """A bar of tqdm, which takes the settings; where it is written to a file, it has a line now and then."""
    if not sys.stderr.isatty():
        settings = {"mininterval": SECONDS_IN_A_FILE, "maxinterval": SECONDS_IN_A_FILE, **settings}
    return tqdm(iterable, **settings)
