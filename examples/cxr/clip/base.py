"""The interface that training and zero-shot evaluation need of a CLIP model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ImageFeatures:
    """What an image encoder says of B images.

    Attributes:
        embedding: (B, d) as `encode_image` returns it.
        pooled: (B, p) of the whole image, before the projection into the common space.
        regions: (B, R, r) of its patches, or of the positions of the last convolution, row by row.
    """

    embedding: Tensor
    pooled: Tensor
    regions: Tensor


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder says of B texts.

    Attributes:
        embedding: (B, d) as `encode_text` returns it.
        words: (B, L, w) of the tokens, before the projection into the common space.
        is_word: (B, L), whether a token is part of the text: not its start, its end or what fills up the row. Of a text
            without any, the first token stands for it.
    """

    embedding: Tensor
    words: Tensor
    is_word: Tensor


class FeatureSizes(NamedTuple):
    """The widths p, r and w of `ImageFeatures.pooled`, `ImageFeatures.regions` and `TextFeatures.words`."""

    pooled: int
    regions: int
    words: int


class ClipModel(nn.Module):
    """An image encoder and a text encoder with a common embedding space.

    Images are floating-point tensors of shape (B, 3, image_size, image_size) or, for grey images,
    (B, 1, image_size, image_size), normalised as the model expects. Texts are token ids of shape (B, L) from
    :meth:`tokenize`. Both encoders return projected embeddings of shape (B, embedding_size) that are **not**
    normalised.
    """

    def __init__(self, image_size: int) -> None:
        """Sets the side of the square images, in pixels."""
        super().__init__()
        self.image_size = image_size

    def encode_image(self, images: Tensor) -> Tensor:
        """Embeds images: (B, 1 or 3, image_size, image_size) → (B, embedding_size)."""
        raise NotImplementedError

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeds token ids: (B, L) → (B, embedding_size)."""
        raise NotImplementedError

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Embeds images (B, 1 or 3, image_size, image_size), with what lies before the common space.

        Raises:
            ValueError: If there is no such thing in this model.
        """
        raise ValueError(f"model: {type(self).__name__} has no image_features, which this objective learns from")

    def text_features(self, tokens: Tensor) -> TextFeatures:
        """Embeds token ids (B, L), with what lies before the common space.

        Raises:
            ValueError: If there is no such thing in this model.
        """
        raise ValueError(f"model: {type(self).__name__} has no text_features, which this objective learns from")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turns texts into token ids of shape (B, L); what exceeds the context is cut off, the end token stays."""
        raise NotImplementedError

    @property
    def logit_scale(self) -> Tensor:
        """The factor on the cosine similarities in the contrastive loss: a positive, differentiable scalar."""
        raise NotImplementedError

    @property
    def logit_bias(self) -> Tensor | None:
        """SigLIP's bias on the logits, a differentiable scalar; None where the model has none."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @cached_property
    def embedding_size(self) -> int:
        """The width of the common embedding space, found by embedding one text."""
        with torch.no_grad():
            return self.encode_text(self.tokenize(["chest"]).to(self.device)).shape[-1]

    @cached_property
    def feature_sizes(self) -> FeatureSizes:
        """The widths of image and text features, found by looking at one of each."""
        with evaluating(self):
            blank = torch.zeros(1, 1, self.image_size, self.image_size, device=self.device)
            image, text = self.image_features(blank), self.text_features(self.tokenize(["chest"]).to(self.device))
        return FeatureSizes(image.pooled.shape[-1], image.regions.shape[-1], text.words.shape[-1])

    def _three_channels(self, images: Tensor) -> Tensor:
        """Checks a batch of images and repeats a single grey channel three times, without a copy."""
        expected = f"(B, 1 or 3, {self.image_size}, {self.image_size})"
        sizes_fit = images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[2:] == (self.image_size,) * 2
        if not (sizes_fit and images.is_floating_point()):
            raise ValueError(f"images: {tuple(images.shape)} {images.dtype} given, floating-point {expected} needed")
        return images.expand(-1, 3, -1, -1)


@contextmanager
def evaluating(model: ClipModel) -> Iterator[None]:
    """Inference mode and evaluation mode, and afterwards the mode the model was in."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


Loader = Callable[..., ClipModel]
"""Makes a model from what follows its name and a colon, and `captions`, `image_size`, `seed` and `replaced`."""

LOADERS: dict[str, Loader] = {}


def loads(name: str) -> Callable[[Loader], Loader]:
    """Register what makes the models called `name`, or `name:…`."""

    def register(loader: Loader) -> Loader:
        LOADERS[name] = loader
        return loader

    return register
