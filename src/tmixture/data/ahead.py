"""Reading ahead: the next blocks are fetched while one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
END = object()


def ahead(items: Iterable[Item], n: int = 2) -> Iterator[Item]:
    """The items in their order, up to n of them fetched ahead by a thread; its errors are raised here."""
    waiting: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=n)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def fetch() -> None:
        source = iter(items)
        try:
            for item in source:
                put(item)
                if stopped.is_set():
                    break
            put(END)
        except BaseException as error:  # whatever it is, the one who waits has to know
            put(END, error)
        finally:
            if hasattr(source, "close"):
                source.close()

    thread = threading.Thread(target=fetch, name="tmixture-reads-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
