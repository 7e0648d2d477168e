"""Two small CLIP models for a laptop, trained from scratch: a Hugging Face ViT and a convolutional one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import transformers
from torch import Tensor, nn

from cxr.clip.adapters import HuggingFaceClip, cut_padding, rows_of, words_of
from cxr.clip.base import ClipModel, ImageFeatures, TextFeatures
from cxr.clip.tokenizer import train_tokenizer

EMBEDDING_SIZE = 128


def small_clip(
    captions: Iterable[str], *, image_size: int = 64, patch_size: int = 8, context_length: int = 77, seed: int = 0
) -> HuggingFaceClip:
    """A Hugging Face CLIP built from a configuration, with a tokenizer trained on the captions.

    Args:
        captions: The texts that the tokenizer learns its vocabulary from.
        image_size: Side of the images, in pixels.
        patch_size: Side of the patches of the vision transformer, a divisor of `image_size`.
        context_length: Longest token sequence.
        seed: Seed of the initial weights; the global random state stays as it is.
    """
    tokenizer = train_tokenizer(captions, context_length=context_length)
    vision = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=EMBEDDING_SIZE,
    )
    config = transformers.CLIPConfig(
        text_config=text_config(tokenizer, context_length).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=EMBEDDING_SIZE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return HuggingFaceClip(transformers.CLIPModel(config), tokenizer)


def small_conv_clip(
    captions: Iterable[str], *, image_size: int = 64, context_length: int = 77, seed: int = 0
) -> SmallConvClip:
    """A small CLIP with a convolutional image encoder, which learns more from few images than a ViT.

    Args:
        captions: The texts that the tokenizer learns its vocabulary from.
        image_size: Side of the images, in pixels.
        context_length: Longest token sequence.
        seed: Seed of the initial weights; the global random state stays as it is.
    """
    tokenizer = train_tokenizer(captions, context_length=context_length)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SmallConvClip(tokenizer, image_size=image_size, context_length=context_length)


class SmallConvClip(ClipModel):
    """A convolutional image encoder beside a small Hugging Face CLIP text encoder."""

    def __init__(
        self, tokenizer: transformers.PreTrainedTokenizerFast, *, image_size: int, context_length: int
    ) -> None:
        """Initialises both encoders from torch's global random state.

        Args:
            tokenizer: From :func:`train_tokenizer`.
            image_size: Side of the images, in pixels; any size works, the encoder pools over positions.
            context_length: Longest token sequence.
        """
        super().__init__(image_size)
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.visual = conv_encoder(EMBEDDING_SIZE)
        self.text = transformers.CLIPTextModelWithProjection(text_config(tokenizer, context_length))
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images: (B, 1 or 3, image_size, image_size) → (B, embedding_size)."""
        # With the channels last, convolutions on a CPU are a quarter faster.
        return self.visual(self._three_channels(images).contiguous(memory_format=torch.channels_last))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids: (B, L) → (B, embedding_size)."""
        return self.text(input_ids=cut_padding(tokens, self.tokenizer.eos_token_id)).text_embeds

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Embeds images, with the maps of the last convolution and their maxima over quadrants."""
        convolutions, quadrants, projection = self.visual[:-3], self.visual[-3:-1], self.visual[-1]
        maps = convolutions(self._three_channels(images).contiguous(memory_format=torch.channels_last))
        pooled = quadrants(maps)
        return ImageFeatures(projection(pooled), pooled, rows_of(maps))

    def text_features(self, tokens: Tensor) -> TextFeatures:
        """Embeds token ids, with the states of the tokens."""
        tokens = cut_padding(tokens, self.tokenizer.eos_token_id)
        output = self.text(input_ids=tokens)
        words = words_of(tokens, self.tokenizer.all_special_ids)
        return TextFeatures(output.text_embeds, output.last_hidden_state, words)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turns texts into token ids of shape (B, context_length)."""
        batch = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return batch["input_ids"]

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine similarities."""
        return self.log_scale.exp()


def conv_encoder(embedding_size: int, widths: Sequence[int] = (24, 48, 96, 160)) -> nn.Sequential:
    """Convolutions at 1/2, 1/4 and 1/8 of the resolution, then the maxima over the quadrants of the image, projected.

    Maxima and not means: a finding may be a few pixels. Quadrants: many findings are told by where they are.
    """
    layers: list[nn.Module] = [*convolution(3, widths[0], kernel=5, stride=2)]
    for inputs, outputs in pairwise(widths):
        layers += [*convolution(inputs, outputs, kernel=3), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], embedding_size))


def convolution(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution, normalised over the batch and rectified."""
    return [
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def text_config(tokenizer: transformers.PreTrainedTokenizerFast, context_length: int) -> transformers.CLIPTextConfig:
    """The configuration of both small models' text encoder."""
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context_length,
        projection_dim=EMBEDDING_SIZE,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
