"""Adapters that give the models of other libraries the interface of :class:`ClipModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from cxr.clip.base import ClipModel, ImageFeatures, TextFeatures


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

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Embeds images, with the normalised states of the patches, without that of the class token."""
        vision = self._tower("vision_model")
        output = vision(pixel_values=self._three_channels(images))
        states, n_patches = output.last_hidden_state, (self.image_size // vision.config.patch_size) ** 2
        if self.causal:  # CLIP normalises the state of its class token alone
            states = vision.post_layernorm(states)
        embedding = getattr(self.model, "visual_projection", nn.Identity())(output.pooler_output)
        return ImageFeatures(embedding, output.pooler_output, states[:, -n_patches:])

    def text_features(self, tokens: Tensor) -> TextFeatures:
        """Embeds token ids, with the states of the tokens."""
        if self.causal:
            tokens = cut_padding(tokens, self.tokenizer.eos_token_id)
        output = self._tower("text_model")(input_ids=tokens)
        embedding = getattr(self.model, "text_projection", nn.Identity())(output.pooler_output)
        return TextFeatures(embedding, output.last_hidden_state, words_of(tokens, self.tokenizer.all_special_ids))

    def _tower(self, name: str) -> Any:
        """The encoder of images or of texts, of CLIP and SigLIP."""
        if not hasattr(self.model, name):
            raise ValueError(f"model: {type(self.model).__name__} has no {name}, whose states this objective needs")
        return getattr(self.model, name)

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

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Embeds images, with the normalised states of the patches, or the map of a residual network's last layer."""
        images, visual = self._three_channels(images), self.model.visual
        if hasattr(visual, "trunk"):  # one of timm
            states = visual.trunk.forward_features(images)
            pooled = visual.trunk.forward_head(states)
            regions = (
                rows_of(states) if states.ndim == 4 else states[:, getattr(visual.trunk, "num_prefix_tokens", 0) :]
            )
            return ImageFeatures(visual.head(pooled), pooled, regions)
        if hasattr(visual, "layer4"):
            with output_of(visual.layer4) as maps:
                embedding = self.model.encode_image(images)
            regions = rows_of(maps[0])
            return ImageFeatures(embedding, regions.mean(1), regions)
        if hasattr(visual, "transformer") and getattr(visual, "attn_pool", None) is None:
            with output_of(visual.transformer) as states:
                embedding = self.model.encode_image(images)
            # OpenAI's transformer has the batch second, open_clip's first.
            first = states[0] if hasattr(visual.transformer, "batch_first") else states[0].transpose(0, 1)
            return ImageFeatures(embedding, *normalised_states(visual, first))
        raise ValueError(f"model: {type(visual).__name__} has no states of patches, which this objective needs")

    def text_features(self, tokens: Tensor) -> TextFeatures:
        """Embeds token ids, with the normalised states of the tokens."""
        text = self.model.text if hasattr(self.model, "text") else self.model
        if not hasattr(text, "ln_final"):
            raise ValueError(f"model: {type(text).__name__} has no states of tokens, which this objective needs")
        with output_of(text.ln_final) as states:
            embedding = self.model.encode_text(tokens)
        special = getattr(getattr(self.tokenizer, "tokenizer", None), "all_special_ids", None)
        return TextFeatures(embedding, states[0], words_of(tokens, special))

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


@contextmanager
def output_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after the block, what the module returned in it."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def rows_of(maps: Tensor) -> Tensor:
    """The positions of maps, row by row: (B, c, h, w) → (B, h·w, c)."""
    return maps.flatten(2).transpose(1, 2)


def normalised_states(visual: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """What a vision transformer projects (B, p), and its patches (B, R, p), from the states (B, 1 + R, p)."""
    normalised = visual.ln_post(states)
    if getattr(visual, "pool_type", "tok") == "tok":
        return normalised[:, 0], normalised[:, 1:]
    late = getattr(visual, "final_ln_after_pool", False)
    pooled = visual.ln_post(states[:, 1:].mean(1)) if late else normalised[:, 1:].mean(1)
    return pooled, normalised[:, 1:]


def words_of(tokens: Tensor, special: Sequence[int] | None = None) -> Tensor:
    """Which tokens (B, L) are words: none of the special ones, or those between CLIP's start and end tokens.

    The end token of CLIP's own vocabulary is the largest id, and what fills up the row stands behind it.
    """
    if special is not None:
        words = ~torch.isin(tokens, torch.tensor(list(special), device=tokens.device))
    else:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        words = (places > 0) & (places < tokens.argmax(dim=1, keepdim=True))
    words[:, 0] |= ~words.any(dim=1)
    return words


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
