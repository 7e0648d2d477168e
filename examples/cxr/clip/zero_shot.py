"""Zero-shot classification as in CheXzero: is an image closer to "pneumonia" or to "no pneumonia"?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cxr.clip import ClipModel
from tmixture.progress import progress_bar

FloatArray = NDArray[np.float32]
POSITIVE_TEMPLATES = ("{}",)
NEGATIVE_TEMPLATES = ("no {}",)
# Several ways to say the same: their mean depends less on how one of them happened to be learned.
ENSEMBLE = (
    ("{}", "{} is present", "there is {}", "findings consistent with {}"),
    ("no {}", "no evidence of {}", "there is no {}", "without {}"),
)
HEALTHY = ("Normal", "No Finding")
"""Labels that deny all others. No report says "no normal", and every "no …" is a word of healthy images."""
PROMPTS = {"chexzero": (POSITIVE_TEMPLATES, NEGATIVE_TEMPLATES), "ensemble": ENSEMBLE}


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


def without_common_axis(embeddings: FloatArray) -> FloatArray:
    """The embeddings (N, d) less what their first principal component tells apart: what is left is about findings."""
    centred = embeddings - embeddings.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    return embeddings - np.outer(centred @ axis, axis)


def encode_classes(
    model: ClipModel,
    labels: Sequence[str],
    *,
    prompt_text: Callable[[str], str] = str.lower,
    aliases: Mapping[str, str] | None = None,
    positive: Sequence[str] = POSITIVE_TEMPLATES,
    negative: Sequence[str] = NEGATIVE_TEMPLATES,
    healthy: Collection[str] = (),
) -> FloatArray:
    """The positive and negative text embedding of each class: the normalised mean of its normalised prompts.

    Args:
        model: The CLIP model.
        labels: The C class names, as in the label file.
        prompt_text: Turns a class name into its words in a prompt; must write as the captions of training do.
        aliases: Other words for some class names, such as {"Normal": "normal chest"}; `prompt_text` gets them too.
        positive: Templates for an image that shows the class, with one "{}" each.
        negative: Templates for an image that does not.
        healthy: Labels that deny all others: the negative embedding of these, where they are among the labels, is the
            normalised mean of the positive embeddings of all others.

    Returns:
        (2, C, d) of unit norm: first positive, then negative.

    Raises:
        ValueError: If a template has no "{}", or an alias is for an unknown label.
    """
    aliases = aliases or {}
    if unknown := set(aliases) - set(labels):
        raise ValueError(f"aliases: {sorted(unknown)} are no labels")
    words = [prompt_text(aliases.get(label, label)) for label in labels]
    embeddings = np.stack([encode_prompts(model, words, templates) for templates in (positive, negative)])
    denies = np.isin(labels, list(healthy))
    if denies.any() and not denies.all():
        found = embeddings[0, ~denies].mean(axis=0)
        embeddings[1, denies] = found / np.linalg.norm(found)
    return embeddings


def encode_prompts(model: ClipModel, words: Sequence[str], templates: Sequence[str]) -> FloatArray:
    """The normalised mean over templates of the normalised prompt embeddings: (C, d)."""
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f'templates: {list(templates)} given, at least one is needed, each with a "{{}}"')
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
