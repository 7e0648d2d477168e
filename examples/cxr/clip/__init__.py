"""One interface to the CLIP models of Hugging Face, open_clip, OpenAI and CheXzero, and two small ones of our own."""

from cxr.clip.adapters import HuggingFaceClip, OpenClip
from cxr.clip.base import ClipModel
from cxr.clip.checkpoints import huggingface_from_openai, load_checkpoint, read_state_dict
from cxr.clip.load import load_clip
from cxr.clip.small import SmallConvClip, small_clip, small_conv_clip
from cxr.clip.tokenizer import train_tokenizer

__all__ = [
    "ClipModel",
    "HuggingFaceClip",
    "OpenClip",
    "SmallConvClip",
    "huggingface_from_openai",
    "load_checkpoint",
    "load_clip",
    "read_state_dict",
    "small_clip",
    "small_conv_clip",
    "train_tokenizer",
]
