"""Adapters that give the models of other libraries the interface of :class:`ClipModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import transformers
from torch import Tensor, nn

from cxr.clip.base import ClipModel


class HuggingFaceClip(ClipModel):
    """Hugging Face's CLIP, SigLIP and models with the same ``get_image_features`` and ``get_text_features``."""

    def __init__(self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        """Wraps a model.

        Args:
            model: For example a ``transformers.CLIPModel`` or ``transformers.SiglipModel``.
            tokenizer: Its tokenizer.

        Raises:
            ValueError: If the end token of a CLIP text encoder, whose state is the embedding, is not the tokenizer's.
        """
        super().__init__(square(model.config.vision_config.image_size))
        self.model: Any = model
        self.tokenizer = tokenizer
        self.context_length: int = model.config.text_config.max_position_embeddings
        self.causal = model.config.model_type == "clip"
        if self.causal:
            check_end_token(model.config.text_config, tokenizer)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images: (B, 1 or 3, image_size, image_size) → (B, embedding_size)."""
        return pooled(self.model.get_image_features(pixel_values=self._three_channels(images)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids: (B, L) → (B, embedding_size)."""
        if self.causal:
            tokens = cut_padding(tokens, self.tokenizer.eos_token_id)
        return pooled(self.model.get_text_features(input_ids=tokens))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turns texts into token ids of shape (B, context_length)."""
        # Padded to the full context, without a mask: SigLIP is trained so, and a causal CLIP never sees the padding.
        batch = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return batch["input_ids"]

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine similarities."""
        return self.model.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """SigLIP's bias on the logits; None for CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())


class OpenClip(ClipModel):
    """open_clip's models, and OpenAI's, which share their method names; the weights become float32 for training."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        """Wraps a model.

        Args:
            model: From ``open_clip.create_model`` or OpenAI's ``clip.load``.
            tokenizer: Turns a list of texts into (B, L) token ids: ``open_clip.get_tokenizer(name)``, or OpenAI's
                ``clip.tokenize`` with ``truncate=True``.
        """
        visual: Any = model.visual
        super().__init__(square(visual.image_size if hasattr(visual, "image_size") else visual.input_resolution))
        self.model: Any = model.float()  # OpenAI's are float16 on CUDA, which AdamW cannot train
        self.tokenizer = tokenizer

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images: (B, 1 or 3, image_size, image_size) → (B, embedding_size)."""
        return self.model.encode_image(self._three_channels(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids: (B, context) → (B, embedding_size)."""
        return self.model.encode_text(tokens)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turns texts into token ids of shape (B, context)."""
        return self.tokenizer(list(texts)).long()

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine similarities."""
        return self.model.logit_scale.exp().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias on the logits of models trained with SigLIP's loss; None for the others."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())


def pooled(output: Any) -> Tensor:
    """The projected embedding in what ``get_*_features`` returns: transformers 4 a tensor, 5 an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output


def cut_padding(tokens: Tensor, end_token: int) -> Tensor:
    """Drops the columns after the last text's end: behind a causal mask they cost time and change nothing."""
    ends = (tokens == end_token).int().argmax(dim=1)
    return tokens[:, : int(ends.max()) + 1]


def check_end_token(config: Any, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer with another end token than the text encoder: its embeddings would ignore the text."""
    legacy = 2  # configurations from before 2023 say 2, and the encoder then looks for the largest id
    end = len(tokenizer) - 1 if config.eos_token_id == legacy else config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise ValueError(f"tokenizer: its end token has id {tokenizer.eos_token_id}, the text encoder needs {end}")


def square(image_size: int | Sequence[int]) -> int:
    """The side of a square image size given as a number or as a pair."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height != width:
        raise ValueError(f"model: takes images of {height}×{width} pixels, square ones are needed")
    return height
