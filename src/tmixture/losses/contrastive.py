"""CLIP's contrastive loss with sample weights, images without a caption, and captions that occur twice in a batch."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

Duplicates = Literal["ignore", "share", "labels"]


class ContrastiveLoss(nn.Module):
    """½[CE(s·vtᵀ) + CE(s·tvᵀ)], the loss of CLIP, averaged over the images that have a caption.

    Without further arguments it is that of CLIP. Where captions are few or templates, the same one occurs several times
    in a batch, and CLIP's loss pushes an image away from its own text: they share the target instead. Weights let rare
    samples count for more, such as those of `ClusterWeights`.

    Args:
        duplicates: what an image's caption is to another image. "ignore" gives all of the target to the image's own
            caption, as CLIP does: an identical one elsewhere in the batch is a negative. "share" divides the target
            equally between identical captions. "labels" divides it in proportion to the Jaccard similarity of label
            vectors, in the manner of MedCLIP (Wang et al. 2022); two vectors without a label are identical.

    Examples:
        >>> images, texts = torch.randn(4, 8), torch.randn(4, 8)
        >>> loss = ContrastiveLoss()(images, texts, torch.tensor(100.0), caption_ids=torch.tensor([0, 1, 0, 2]))
    """

    def __init__(self, duplicates: Duplicates = "share") -> None:
        super().__init__()
        if duplicates not in get_args(Duplicates):
            raise ValueError(
                f"duplicates must be one of {', '.join(map(repr, get_args(Duplicates)))}, got {duplicates!r}"
            )
        self.duplicates = duplicates

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        logit_scale: Tensor,
        *,
        caption_ids: Tensor | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar; zero, with a graph, when no image has a caption.

        Args:
            image_embeddings: (B, d), of any norm.
            text_embeddings: (B, d), of any norm; row i belongs to image i.
            logit_scale: the factor s on the cosine similarities, a scalar.
            caption_ids: (B,) integers, equal where the captions are; all different if None. Negative: no caption; such
                a pair takes no part, neither as a positive nor as a negative.
            labels: (B, C) label vectors of 0 and 1, for `duplicates="labels"`.
            weights: (B,) factors on the samples' terms. The sum is divided by the number of captions and not by the sum
                of weights, so that a batch of heavy samples moves the model more; a mean of one over the data set
                keeps the learning rate's meaning.

        Raises:
            ValueError: numbers of rows differ, or labels are missing.
        """
        if caption_ids is None:
            caption_ids = torch.arange(len(image_embeddings), device=image_embeddings.device)
        given = {"text_embeddings": text_embeddings, "caption_ids": caption_ids, "labels": labels, "weights": weights}
        check_rows(len(image_embeddings), given)
        captioned = caption_ids >= 0
        targets = contrastive_targets(
            caption_ids[captioned], self.duplicates, None if labels is None else labels[captioned]
        )
        with torch.autocast(image_embeddings.device.type, enabled=False):
            losses = contrastive_terms(image_embeddings[captioned], text_embeddings[captioned], logit_scale, targets)
        if weights is not None:
            losses = losses * weights[captioned]
        return losses.sum() / max(len(losses), 1)

    def extra_repr(self) -> str:
        """The setting."""
        return f"duplicates={self.duplicates!r}"


def cosines(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """The logits s·cos of images (n, d) and texts (m, d): (n, m), at least float32, as s multiplies the rounding."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    return scale * normalize(images.to(dtype), dim=1) @ normalize(texts.to(dtype), dim=1).T


def contrastive_terms(
    images: Tensor, texts: Tensor, scale: Tensor | float, targets: Tensor, *, image_to_text: float = 0.5
) -> Tensor:
    """The terms of a contrastive loss, pair by pair: (n, d), (n, d) → (n,).

    Args:
        images: (n, d), of any norm.
        texts: (n, d), of any norm; row i belongs to image i.
        scale: the factor s on the cosine similarities.
        targets: (n, n), rows summing to one, symmetric but for their sums: see `contrastive_targets`.
        image_to_text: the share of the direction from images to texts.
    """
    logits = cosines(images, texts, scale)
    to_text, to_image = soft_cross_entropy(logits, targets), soft_cross_entropy(logits.T, targets)
    return image_to_text * to_text + (1 - image_to_text) * to_image


def contrastive_targets(caption_ids: Tensor, duplicates: Duplicates, labels: Tensor | None = None) -> Tensor:
    """The distribution over the batch's captions that the softmax of each image should match, a symmetric choice.

    Args:
        caption_ids: (B,), equal where the captions are.
        duplicates: see `ContrastiveLoss`.
        labels: (B, C) of 0 and 1, for the rule "labels".

    Returns:
        (B, B), rows summing to one.
    """
    if duplicates == "ignore":
        return torch.eye(len(caption_ids), device=caption_ids.device)
    if duplicates == "share":
        similarity = (caption_ids[:, None] == caption_ids).float()
    elif labels is None:
        raise ValueError("labels must be given with duplicates='labels', which compares them")
    else:
        similarity = jaccard(labels.float())
    return similarity / similarity.sum(dim=1, keepdim=True)


def jaccard(labels: Tensor) -> Tensor:
    """Shared labels over all labels of every pair of 0/1 vectors: (B, C) → (B, B), and 1 where both are empty."""
    shared = labels @ labels.T
    counts = labels.sum(dim=1)
    either = counts[:, None] + counts - shared
    return torch.where(either > 0, shared / either.clamp(min=1), 1.0)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row of logits against a distribution: (n, m), (n, m) → (n,)."""
    return -(targets * log_softmax(logits, dim=1)).sum(dim=1)


def check_rows(batch_size: int, given: dict[str, Tensor | None]) -> None:
    """Raise a `ValueError` that names the first tensor with another number of rows than the images."""
    for name, tensor in given.items():
        if tensor is not None and len(tensor) != batch_size:
            raise ValueError(f"{name} has {len(tensor)} rows, but there are {batch_size} images")
