"""MedCLIP (Wang et al. 2022, "MedCLIP: Contrastive Learning from Unpaired Medical Images and Text")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cxr.clip import ClipModel
from cxr.data.texts import Captions
from cxr.training.objective import Batch, Objective, Outcome, over_batch
from tmixture.losses.contrastive import Duplicates, cosines, soft_cross_entropy
from tmixture.precision import full_precision


class MedClip(Objective):
    """Cross-entropy both ways against softmax(cosines of label vectors), its equations 4 to 8.

    Args:
        model: of no use here.
        label_names: the C findings.
        duplicates: of no use here: the targets say it.
        decoupled: take the texts from images drawn anew instead of the batch's own, as the paper does: an image matches
            a text by their labels, wherever it comes from.
    """

    def __init__(
        self,
        model: ClipModel,
        label_names: Sequence[str],
        *,
        duplicates: Duplicates = "labels",
        decoupled: bool = False,
    ) -> None:
        super().__init__(model, label_names, duplicates=duplicates)
        self.draws_others = decoupled

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image.

        A text's term counts for the image that it belongs to; that of one drawn from elsewhere for all alike.
        """
        images, own = model.encode_image(batch.pixels), batch.captions.embeddings(model)
        given = batch.captions.given
        texts, text_labels = own[given], batch.labels[given]
        if batch.others is not None:
            texts, text_labels = _captioned(model, *batch.others)
        with full_precision(batch.device):
            logits = cosines(images[given], texts, model.logit_scale)
            similarity = label_similarity(batch.labels[given], text_labels)
            to_text = soft_cross_entropy(logits, similarity.softmax(1))
            to_image = soft_cross_entropy(logits.T, similarity.T.softmax(1))
            if batch.others is not None:
                to_image = to_image.mean().expand(len(to_text))
        return Outcome(images, own, over_batch((to_text + to_image) / 2, given))


def _captioned(model: ClipModel, captions: Captions, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of the images that have a caption."""
    return captions.embeddings(model)[captions.given], labels[captions.given]


def label_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of label vectors (n, C) and (m, C): (n, m). Two without a finding are alike."""
    empty = ~a.any(1)[:, None] & ~b.any(1)
    return torch.where(empty, 1.0, normalize(a.float(), dim=1) @ normalize(b.float(), dim=1).T)
