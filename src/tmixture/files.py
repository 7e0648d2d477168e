"""Reading and writing a module as a safetensors file: tensors and plain settings, nothing that executes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from tmixture.priors import Prior
from tmixture.step_sizes import PowerDecay, StepSize

# What is in a file, by the name of its class.
FORMAT = "tmixture.{}/1"
MIXTURE = "StudentTMixture"
# Where a message of bytes has its format, and its plain values.
HEADER = "header"


def encoded(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a mixture as plain values; where it computes, and ν, which the tensors hold, are left out."""
    plain = {name: value for name, value in settings.items() if name not in ("dof", "device")}
    plain["step_size"] = plain_step_size(plain["step_size"])
    plain["init"] = plain["init"].tolist() if isinstance(plain["init"], Tensor) else plain["init"]
    plain["prior"] = None if plain["prior"] is None else asdict(plain["prior"])
    plain["generator"] = plain["generator"] if isinstance(plain["generator"], int) else None
    plain["dtype"] = str(plain["dtype"]).removeprefix("torch.")
    return plain


def decoded(plain: dict[str, Any]) -> dict[str, Any]:
    """The arguments that `encoded` made plain."""
    step = step_size_of(plain["step_size"])
    prior = Prior(**plain["prior"]) if plain.get("prior") else None
    return {**plain, "step_size": step, "prior": prior, "dtype": getattr(torch, plain["dtype"])}


def plain_step_size(step: StepSize) -> Any:
    """A number, or the numbers of a `PowerDecay`."""
    if callable(step) and not isinstance(step, PowerDecay):
        raise ValueError("step_size is a function, which a file cannot hold: set it to a number or a PowerDecay")
    return asdict(step) if isinstance(step, PowerDecay) else step


def step_size_of(plain: Any) -> StepSize:
    """What `plain_step_size` made plain."""
    return PowerDecay(**plain) if isinstance(plain, dict) else plain


def write(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    settings: dict[str, Any],
    record: dict[str, Any],
    origin: dict[str, Any] | None = None,
    *,
    kind: str = MIXTURE,
) -> None:
    """Write the file under a temporary name and move it into place, so that it is whole or not there."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT.format(kind), "settings": json.dumps(settings), "record": json.dumps(record)}
    if origin is not None:
        metadata["origin"] = json.dumps(origin)
    try:
        save_file(contiguous, temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_mixture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that `StudentTMixture.save` wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT.format(MIXTURE)
    except SafetensorError:
        return False


def origin(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `StudentTMixture.save` was told of the data; empty if nothing."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata().get("origin", "{}"))


def read(path: str | os.PathLike[str], kind: str = MIXTURE) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors, the plain settings and the record of a file.

    Raises:
        ValueError: the file was not written by the method `save` of this kind of mixture.
    """
    if os.path.isdir(path):
        raise ValueError(f"{path} holds no {kind}: it is a folder")
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} holds no {kind}: it is no whole safetensors file ({error})") from error
    with opened as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT.format(kind):
            raise ValueError(
                f"{path} holds no {kind}: its format is {metadata.get('format')!r}, not {FORMAT.format(kind)!r}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["settings"]), json.loads(metadata["record"])


def packed(kind: str, tensors: dict[str, Tensor], **header: Any) -> bytes:
    """Tensors, and a few plain values, as the bytes of a safetensors file."""
    text = json.dumps({"format": FORMAT.format(kind), **header}).encode()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save({**plain, HEADER: torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def unpacked(kind: str, content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `packed` made bytes of.

    Raises:
        ValueError: they are something else, or of another version.
    """
    try:
        tensors = load(content)
        header = json.loads(bytes(tensors.pop(HEADER).tolist()))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"content must be that of a {kind}, but it cannot be read: {error}") from error
    if header.get("format") != FORMAT.format(kind):
        raise ValueError(f"content must be that of {FORMAT.format(kind)}, got {header.get('format')}")
    return tensors, header
