"""One interface to the CLIP models of Hugging Face, open_clip, OpenAI and CheXzero, and two small ones of our own.

All modules of this folder are read, and what they register by `loads` is known to `load_clip`.
"""

import pkgutil
from importlib import import_module

from cxr.clip.adapters import HuggingFaceClip, OpenClip
from cxr.clip.base import ClipModel, ImageFeatures, TextFeatures, evaluating, loads
from cxr.clip.checkpoints import huggingface_from_openai, load_checkpoint, read_state_dict
from cxr.clip.load import library_of, load_clip
from cxr.clip.small import SmallConvClip, small_clip, small_conv_clip
from cxr.clip.tokenizer import train_tokenizer

for module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = [
    "ClipModel",
    "HuggingFaceClip",
    "ImageFeatures",
    "OpenClip",
    "SmallConvClip",
    "TextFeatures",
    "evaluating",
    "huggingface_from_openai",
    "library_of",
    "load_checkpoint",
    "load_clip",
    "loads",
    "read_state_dict",
    "small_clip",
    "small_conv_clip",
    "train_tokenizer",
]
