"""What image and text encoder learn from together: the base of all objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxr.clip import ClipModel
from cxr.clip.zero_shot import (
    Prompts,
    encode_classes,
    encode_images,
    without_common_axis,
    zero_shot_probabilities,
)
from cxr.data.texts import Captions
from tmixture.losses.contrastive import Duplicates, contrastive_targets

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """What an objective learns from.

    Attributes:
        pixels: (B, 1 or 3, side, side), normalised.
        captions: of the images.
        labels: (B, C) bool, whether an image shows the finding; of no use where `labelled` is not set.
        labelled: (B,) bool, whether the labels of an image are known.
        others: captions and labels of as many images drawn from elsewhere, where an objective asks for them.
        generator: source of randomness on the CPU, for augmentation.
    """

    pixels: Tensor
    captions: Captions
    labels: Tensor
    labelled: Tensor
    generator: torch.Generator
    others: tuple[Captions, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.pixels.device


@dataclass(frozen=True)
class Outcome:
    """What came of a batch.

    Attributes:
        images: (B, d) embeddings, of any norm.
        texts: (B, d) those of their captions; zeros where there is none.
        terms: (B,) whose mean is the loss, so that a cluster stage can weigh the images.
    """

    images: Tensor
    texts: Tensor
    terms: Tensor


@dataclass(frozen=True)
class Scores:
    """What a model says of N test images.

    Attributes:
        embeddings: (N, d) of unit norm.
        probabilities: (N, C) of the findings.
        without_axis: (N, C) the same from embeddings without their first principal component; NaN where scores come
            from something else.
    """

    embeddings: FloatArray
    probabilities: FloatArray
    without_axis: FloatArray


class Objective(nn.Module):
    """What is added to a model, the loss of a batch, and the scores of findings at test time.

    The parameters that it has are trained and kept beside the model's. The model itself is not part of it: every method
    is given it.

    Args:
        model: a model of the kind that will be trained, for its sizes.
        label_names: the C findings.
        duplicates: what an identical or similar caption elsewhere in the batch counts as; see `ContrastiveLoss`.
    """

    draws_others = False
    """Whether a batch of training comes with captions of other images: `Batch.others`."""

    def __init__(self, model: ClipModel, label_names: Sequence[str], *, duplicates: Duplicates = "labels") -> None:
        super().__init__()
        self.label_names, self.duplicates = list(label_names), duplicates

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image."""
        raise NotImplementedError

    @torch.inference_mode()
    def scores(
        self, model: ClipModel, images: Iterable[Tensor], label_names: Sequence[str], prompts: Prompts
    ) -> Scores:
        """Score findings, those of the training or others, from batches of images: zero-shot as in CheXzero."""
        classes = encode_classes(model, label_names, prompts)
        embeddings = encode_images(model, images, progress=False)
        return Scores(
            embeddings,
            zero_shot_probabilities(embeddings, classes),
            zero_shot_probabilities(without_common_axis(embeddings), classes),
        )

    def targets(self, batch: Batch) -> Tensor:
        """Which captions of the batch an image should match, rows summing to one: of the n captioned images, (n, n)."""
        given = batch.captions.given
        return contrastive_targets(batch.captions.ids[given], self.duplicates, batch.labels[given].float())


def over_batch(terms: Tensor, chosen: Tensor) -> Tensor:
    """Terms (n,) of the chosen images as terms (B,) of all: zero for the others, and with the same mean."""
    filled = terms.new_zeros(len(chosen))
    filled[chosen] = terms * (len(chosen) / max(1, len(terms)))
    return filled
