"""Arithmetic whose precision the surrounding training does not lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, get_ident
from typing import Any

import torch


def full_precision(device: torch.device, *, allow_tf32: bool = False) -> AbstractContextManager[None]:
    """A block without autocast, in which float32 products are computed in float32 whatever torch was told.

    Those who train with `torch.set_float32_matmul_precision("high")` want their network's products fast. A squared
    distance is a difference of such products, and a density its exponential, but TF32 keeps eleven bits of the factors
    and bfloat16 eight. Only a graph of `torch.compile` has the products that torch was told.

    Args:
        device: where the block computes.
        allow_tf32: whether a GPU computes them in TF32 instead.
    """
    if torch.compiler.is_compiling():
        return torch.autocast(device_type=device.type, enabled=False)
    return _float32_arithmetic(device, allow_tf32)


@contextmanager
def exact_arithmetic(device: torch.device, *, allow_tf32: bool = False) -> Iterator[None]:
    """`full_precision` without autograd, for tensors that may be used outside an enclosing inference mode."""
    with torch.inference_mode(False), torch.no_grad(), full_precision(device, allow_tf32=allow_tf32):
        yield


@contextmanager
def _float32_arithmetic(device: torch.device, allow_tf32: bool) -> Iterator[None]:
    wanted = "tf32" if allow_tf32 and device.type == "cuda" else "ieee"
    with torch.autocast(device_type=device.type, enabled=False), _setting_of(device).hold(wanted):
        yield


class _Setting:
    """How the process multiplies float32 matrices on one kind of device, and which precision its threads want.

    Torch has one setting for all threads. While any of them wants "ieee", it is that; when all have what they wanted,
    it is what others have set it to, before or meanwhile.

    Args:
        read: returns what torch is told.
        write: tells torch.
        names: what torch calls the two precisions.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[str], None], names: dict[str, str]) -> None:
        self.read, self.write, self.names = read, write, names
        self.lock = Lock()
        self.wanted: dict[int, list[str]] = {}  # by each thread, the innermost block last
        self.told = self.written = ""

    @contextmanager
    def hold(self, precision: str) -> Iterator[None]:
        """A block whose products have this precision at least."""
        thread = get_ident()
        with self.lock:
            self.wanted.setdefault(thread, []).append(precision)
            self._apply()
        try:
            yield
        finally:
            with self.lock:
                self.wanted[thread].pop()
                if not self.wanted[thread]:
                    del self.wanted[thread]
                self._apply()

    def _apply(self) -> None:
        now = self.read()
        if now != self.written:  # by others
            self.told = now
        innermost = {stack[-1] for stack in self.wanted.values()}
        value = self.told
        # "none" is torch's default, which is "ieee". It stays, and so follows torch.backends.fp32_precision still.
        if innermost and not ("ieee" in innermost and self.told == "none"):
            value = self.names["ieee" if "ieee" in innermost else "tf32"]
        if value != now:
            self.write(value)
        self.written = value


def _setting_of(device: torch.device) -> _Setting:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        return _ONE_FOR_ALL
    return _SETTINGS.get(device.type, _NONE)


def _backend(matmul: Any) -> _Setting:
    return _Setting(
        lambda: str(matmul.fp32_precision),
        lambda value: setattr(matmul, "fp32_precision", value),
        {"ieee": "ieee", "tf32": "tf32"},
    )


_ONE_FOR_ALL = _Setting(
    torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, {"ieee": "highest", "tf32": "high"}
)
_SETTINGS = {
    "cuda": _backend(torch.backends.cuda.matmul),
    "cpu": _backend(torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
}
_NONE = _Setting(lambda: "none", lambda value: None, {})
