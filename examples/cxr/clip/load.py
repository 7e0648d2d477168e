"""The factory: a CLIP model by name, with the weights of a checkpoint if one is given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from cxr.clip.adapters import HuggingFaceClip, OpenClip
from cxr.clip.base import LOADERS, ClipModel, loads
from cxr.clip.checkpoints import load_checkpoint
from cxr.clip.small import small_clip, small_conv_clip


def load_clip(
    name: str,
    *,
    init: str | Path | None = None,
    captions: Iterable[str] | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> ClipModel:
    """Builds a CLIP model.

    Args:
        name: "small" or "small-conv" (from scratch, tokenizer trained on `captions`), "hf:NAME" or the path of a local
            Hugging Face directory, "open_clip:NAME" or "openai:NAME", or what another module registers. For CheXzero's
            weights: "open_clip:ViT-B-32-quickgelu" or "hf:openai/clip-vit-base-patch32", with `init`.
        init: A checkpoint whose weights replace the model's. Hugging Face models then need no weights of their own;
            open_clip models without it are initialised at random.
        captions: The texts that a small model's tokenizer is trained on.
        image_size: Side of the images of a small model (default 64); for other models only checked.
        seed: Seed of the initial weights, where they are random; the global random state stays as it is.

    Raises:
        ValueError: For an unknown name, missing captions, another image size than the model's, or a checkpoint that
            does not fit.
    """
    library, identifier = library_of(name)
    if library not in LOADERS:
        raise ValueError(f"model: {name!r} is not known; use {', '.join(sorted(LOADERS))}, with :NAME, or a directory")
    model = LOADERS[library](identifier, captions=captions, image_size=image_size, seed=seed, replaced=init is not None)
    if image_size not in (None, model.image_size):
        raise ValueError(f"image_size: {image_size} given, model {name!r} takes {model.image_size}")
    if init is not None:
        load_checkpoint(model, init)
    return model


def library_of(name: str) -> tuple[str, str]:
    """Which loader a model's name asks for, and what that loader is to load: a folder is one of Hugging Face."""
    library, _, identifier = ("hf", "", name) if Path(name).is_dir() else name.partition(":")
    return library, identifier


@loads("small")
def load_small(name: str, *, captions: Iterable[str] | None, image_size: int | None, seed: int, **_: Any) -> ClipModel:
    """A model from scratch, with a tokenizer trained on the captions."""
    return small_clip(_needed(captions), image_size=image_size or 64, seed=seed)


@loads("small-conv")
def load_small_conv(
    name: str, *, captions: Iterable[str] | None, image_size: int | None, seed: int, **_: Any
) -> ClipModel:
    """The same with a convolutional image encoder."""
    return small_conv_clip(_needed(captions), image_size=image_size or 64, seed=seed)


def _needed(captions: Iterable[str] | None) -> Iterable[str]:
    if captions is None:
        raise ValueError("captions: none given, the tokenizer of a small model is trained on them")
    return captions


@loads("hf")
def load_huggingface(name: str, *, replaced: bool, **_: Any) -> HuggingFaceClip:
    """A Hugging Face model with its tokenizer, from a local directory or the hub; without weights if to be replaced."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    if replaced:
        model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(name))
    else:
        model = transformers.AutoModel.from_pretrained(name)
    return HuggingFaceClip(model.float(), tokenizer)


@loads("open_clip")
def load_open_clip(name: str, *, seed: int, replaced: bool, **_: Any) -> OpenClip:
    """An open_clip architecture with random weights; `replaced` says that a checkpoint of OpenAI's kind follows."""
    import open_clip  # here, because it needs torchvision, which nothing else does

    if replaced and f"{name}-quickgelu" in open_clip.list_models():
        warnings.warn(
            f"model: the weights of OpenAI and CheXzero belong into open_clip:{name}-quickgelu; in {name}, which has "
            "another activation, they load without error and give wrong embeddings",
            stacklevel=3,
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = open_clip.create_model(name)
    return OpenClip(model, open_clip.get_tokenizer(name))


@loads("openai")
def load_openai(name: str, **_: Any) -> OpenClip:
    """A model of OpenAI's `clip` package with OpenAI's weights."""
    import clip  # type: ignore[import-not-found]

    model, _ = clip.load(name, device="cpu")
    return OpenClip(model, partial(clip.tokenize, truncate=True))
