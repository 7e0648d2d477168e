"""Reads CLIP checkpoints, CheXzero's included, and puts their weights into any :class:`ClipModel`."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxr.clip.adapters import HuggingFaceClip
from cxr.clip.base import ClipModel


def load_checkpoint(model: ClipModel, path: str | Path) -> None:
    """Loads the weights of a checkpoint into a model, all of them or none.

    The checkpoint may come from this model, from the wrapped one, or be a state dict in OpenAI's naming (CheXzero's
    are), which is converted for Hugging Face's CLIP.

    The encoders of MedCLIP, MedKLIP and GLoRIA are others (residual networks or a Swin beside a BERT): the error names
    what fits and what does not.

    Raises:
        ValueError: If keys are missing or unexpected or shapes differ; the model is left as it was.
    """
    state = read_state_dict(path)
    if isinstance(model, HuggingFaceClip) and "visual.conv1.weight" in state:
        state = huggingface_from_openai(state)
    own = model.state_dict()
    unexpected = [key for key in state if key not in own and f"model.{key}" not in own]
    state = {key if key in own else f"model.{key}": value for key, value in state.items()}
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    fitting = [key for key in state if key in own and state[key].shape == own[key].shape]
    problems = {
        "missing keys": [key for key in own if key not in state],
        "unexpected keys": unexpected,
        "different shapes": shapes,
    }
    if any(problems.values()):
        lines = [f"{name} ({len(found)}): {shorten(found)}" for name, found in problems.items() if found]
        lines.append(f"fitting keys ({len(fitting)} of {len(state)}): {shorten(fitting) or 'none'}")
        raise ValueError("\n  ".join([f"init: {path} does not fit the model", *lines]))
    model.load_state_dict(state)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a .pt, .pth or .safetensors file onto the CPU, executing nothing from it.

    State dicts nested under "state_dict", "model_state_dict" or "model" are found; the prefixes "module." and
    "_orig_mod.", which DataParallel and torch.compile add, are removed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no plain state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"init: no checkpoint at {path}")
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise ValueError(f"init: {path} cannot be read as a file of tensors: {error}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"init: {path} holds a {type(content).__name__} without tensors, not a state dict")
    state = {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in content.items()}
    sizes = {"input_resolution", "context_length", "vocab_size"}  # in OpenAI's original files, beside the weights
    return {key: value for key, value in state.items() if key not in sizes}


# OpenAI's names as (pattern, Hugging Face's name), tried in order on the text and on the image tower.
_RENAMED = [
    (r"^visual\.", "vision_model."),
    (r"^(?=token_embedding|positional_embedding|transformer|ln_final)", "text_model."),
    (r"\.transformer\.resblocks\.", ".encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.class_embedding$", ".embeddings.class_embedding"),
    (r"\.positional_embedding$", ".embeddings.position_embedding.weight"),
    (r"\.token_embedding\.weight$", ".embeddings.token_embedding.weight"),
    (r"\.conv1\.weight$", ".embeddings.patch_embedding.weight"),
    (r"\.ln_pre\.", ".pre_layrnorm."),
    (r"\.ln_post\.", ".post_layernorm."),
    (r"\.ln_final\.", ".final_layer_norm."),
]


def huggingface_from_openai(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames an OpenAI-CLIP vision transformer's state dict to Hugging Face's ``CLIPModel``.

    Hugging Face keeps query, key and value projections apart and its output projections as linear layers, that is
    transposed.
    """
    converted = {}
    for key, value in state.items():
        if key == "visual.proj":
            converted["visual_projection.weight"] = value.T.contiguous()
        elif key == "text_projection":
            converted["text_projection.weight"] = value.T.contiguous()
        elif ".attn.in_proj_" in key:
            stem, kind = rename(key).split(".attn.in_proj_")
            for name, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3)):
                converted[f"{stem}.self_attn.{name}.{kind}"] = part.clone()
        else:
            converted[rename(key)] = value
    return converted


def rename(key: str) -> str:
    """Hugging Face's name of a weight that both keep in the same form."""
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def shorten(names: list[str], limit: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
