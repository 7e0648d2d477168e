"""Reading and writing a module as a safetensors file: tensors and plain settings, nothing that executes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "tmixture.StudentTMixture/1"


def write(path: str | os.PathLike[str], tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write the file under a temporary name and move it into place, so that it is whole or not there."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, temporary, metadata={"format": FORMAT, "settings": json.dumps(settings)})
    os.replace(temporary, path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the settings of a file.

    Raises:
        ValueError: the file was not written by `StudentTMixture.save`.
    """
    if os.path.isdir(path):
        raise ValueError(f"{path} holds no StudentTMixture: it is a folder")
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} holds no StudentTMixture: it is no whole safetensors file ({error})") from error
    with opened as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(
                f"{path} holds no StudentTMixture: its format is {metadata.get('format')!r}, not {FORMAT!r}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["settings"])
