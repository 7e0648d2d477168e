"""Zero-shot classification as in CheXzero: is an image closer to "pneumonia" or to "no pneumonia"?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cxr.clip.base import ClipModel, evaluating
from tmixture.progress import progress_bar

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Prompts:
    """How findings are asked for.

    Attributes:
        positive: templates for an image that shows the finding, with one "{}" each.
        negative: templates for an image that does not.
        healthy: labels that deny all others: what speaks against them is the mean of what speaks for all others.
    """

    positive: tuple[str, ...] = ("{}",)
    negative: tuple[str, ...] = ("no {}",)
    healthy: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses templates without a place for the name."""
        for name, templates in (("positive", self.positive), ("negative", self.negative)):
            if not templates or any("{}" not in template for template in templates):
                raise ValueError(f'{name}: {list(templates)} given, at least one is needed, each with a "{{}}"')

    def texts(self, labels: Sequence[str]) -> list[list[list[str]]]:
        """Of the positive and the negative templates, for each label in lower case all texts."""
        return [
            [[template.format(label.lower()) for template in templates] for label in labels]
            for templates in (self.positive, self.negative)
        ]


PROMPTS = {
    "chexzero": Prompts(),
    # Several ways to say the same: their mean depends less on how one of them happened to be learned. No report says
    # "no normal", and every "no …" is a word of healthy images.
    "ensemble": Prompts(
        ("{}", "{} is present", "there is {}", "findings consistent with {}"),
        ("no {}", "no evidence of {}", "there is no {}", "without {}"),
        ("Normal", "No Finding"),
    ),
}


def zero_shot_probabilities(image_embeddings: FloatArray, class_embeddings: FloatArray) -> FloatArray:
    """The probability of each class for each image: p = e^pos / (e^pos + e^neg) of the cosines, without logit_scale.

    Args:
        image_embeddings: (N, d) of unit norm, from :func:`encode_images`.
        class_embeddings: (2, C, d) of unit norm, from :func:`encode_classes`.

    Returns:
        (N, C), in (0, 1).
    """
    positive, negative = class_embeddings
    margin = image_embeddings @ (positive - negative).T
    return (1 / (1 + np.exp(-margin))).astype(np.float32)


def probabilities(similarities: NDArray[np.floating]) -> FloatArray:
    """The same of any similarities of N images to the positive and to the negative prompts: (2, C, N) → (N, C)."""
    return (1 / (1 + np.exp(similarities[1] - similarities[0]))).T.astype(np.float32)


def without_common_axis(embeddings: FloatArray) -> FloatArray:
    """The embeddings (N, d) less what their first principal component tells apart: what is left is about findings."""
    centred = embeddings - embeddings.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    return embeddings - np.outer(centred @ axis, axis)


def encode_classes(
    model: ClipModel,
    labels: Sequence[str],
    prompts: Prompts = PROMPTS["chexzero"],
    *,
    prompt_text: Callable[[str], str] = str.lower,
    aliases: Mapping[str, str] | None = None,
) -> FloatArray:
    """The positive and negative text embedding of each class: the normalised mean of its normalised prompts.

    Args:
        model: The CLIP model.
        labels: The C class names, as in the label file.
        prompts: How they are asked for.
        prompt_text: Turns a class name into its words in a prompt; must write as the captions of training do.
        aliases: Other words for some class names, such as {"Normal": "normal chest"}; `prompt_text` gets them too.

    Returns:
        (2, C, d) of unit norm: first positive, then negative.

    Raises:
        ValueError: If an alias is for an unknown label.
    """
    aliases = aliases or {}
    if unknown := set(aliases) - set(labels):
        raise ValueError(f"aliases: {sorted(unknown)} are no labels")
    words = [prompt_text(aliases.get(label, label)) for label in labels]
    embeddings = np.stack([encode_prompts(model, words, part) for part in (prompts.positive, prompts.negative)])
    embeddings = oppose_healthy(embeddings, labels, prompts)
    return embeddings / np.linalg.norm(embeddings, axis=2, keepdims=True).clip(min=1e-12)


def oppose_healthy(values: FloatArray, labels: Sequence[str], prompts: Prompts) -> FloatArray:
    """What the two kinds of prompts of C classes say, (2, C, m), with the healthy ones denying all others."""
    denies = np.isin(labels, list(prompts.healthy))
    if denies.any() and not denies.all():
        values = values.copy()
        values[1, denies] = values[0, ~denies].mean(axis=0)
    return values


def encode_prompts(model: ClipModel, words: Sequence[str], templates: Sequence[str]) -> FloatArray:
    """The normalised mean over templates of the normalised prompt embeddings: (C, d)."""
    prompts = [template.format(word) for word in words for template in templates]
    with evaluating(model):
        tokens = model.tokenize(prompts).split(256)
        embeddings = torch.cat([normalize(model.encode_text(part.to(model.device)), dim=-1) for part in tokens])
        means = embeddings.unflatten(0, (len(words), len(templates))).mean(dim=1)
        return normalize(means, dim=-1).float().cpu().numpy()


def encode_images(model: ClipModel, batches: Iterable[Any], *, progress: bool = True) -> FloatArray:
    """Unit-norm embeddings of all images, in the order of the batches.

    Args:
        model: The CLIP model; the batches are moved to its device.
        batches: A loader of image batches, or of tuples or lists that begin with one.
        progress: Show a progress bar.

    Returns:
        (N, d).
    """
    embeddings = []
    with evaluating(model):
        for batch in progress_bar(batches, desc="encode images", unit="batch", disable=not progress, leave=False):
            images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
            features = model.encode_image(images.to(model.device, non_blocking=True))
            embeddings.append(normalize(features.float(), dim=-1).cpu())
    if not embeddings:
        raise ValueError("batches: none given, at least one is needed")
    return torch.cat(embeddings).numpy()


def ensemble(probabilities: Sequence[FloatArray]) -> FloatArray:
    """The mean of several models' probabilities, each (N, C), as CheXzero combines its checkpoints."""
    return np.stack(probabilities).mean(axis=0, dtype=np.float64).astype(np.float32)
