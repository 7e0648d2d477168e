"""MedKLIP (Wu et al. 2023, "MedKLIP: Medical Knowledge Enhanced Language-Image Pre-Training for X-ray Diagnosis")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from cxr.clip import ClipModel, evaluating
from cxr.clip.zero_shot import Prompts, encode_prompts
from cxr.training.objective import Batch, Objective, Outcome, Scores, over_batch
from tmixture.losses.contrastive import Duplicates
from tmixture.precision import full_precision

LAYERS, HEADS, DROPOUT = 4, 4, 0.1
WIDTH = 256  # or that of the embeddings, where they are narrower


class MedKlip(Objective):
    """Cross-entropy of whether each finding is there, asked for by its name through a decoder over the regions.

    The text encoder stays as it is, as the paper's does: a finding that was never trained on can be asked for by name.

    Args:
        model: whose text encoder embeds the names, and whose regions the decoder attends to.
        label_names: the C findings.
        duplicates: of no use here: there is no contrast.
    """

    queries: Tensor

    def __init__(self, model: ClipModel, label_names: Sequence[str], *, duplicates: Duplicates = "labels") -> None:
        super().__init__(model, label_names, duplicates=duplicates)
        width, regions = min(WIDTH, model.embedding_size), model.feature_sizes.regions
        self.regions = nn.Sequential(nn.Linear(regions, regions), nn.ReLU(), nn.Linear(regions, width))
        self.names = nn.Linear(model.embedding_size, width)
        layer = nn.TransformerDecoderLayer(width, HEADS, 4 * width, DROPOUT, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(width))
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(width, 2)
        for parameter in self.parameters():
            if parameter.ndim == 2:  # as for DETR's decoder; the authors' N(0, 0.02) takes several times as many steps
                nn.init.xavier_uniform_(parameter)
        self.register_buffer("queries", name_queries(model, label_names))

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image: the mean over the findings."""
        image = model.image_features(batch.pixels)
        with torch.no_grad():
            texts = batch.captions.embeddings(model)
        labelled = batch.labelled
        logits = self.existence(image.regions[labelled], self.queries)
        with full_precision(batch.device):
            present = batch.labels[labelled].long()
            terms = cross_entropy(logits.float().transpose(1, 2), present, reduction="none").mean(1)
        return Outcome(image.embedding, texts, over_batch(terms, labelled))

    def existence(self, regions: Tensor, queries: Tensor) -> Tensor:
        """Logits (B, C, 2) of absence and presence, from regions (B, R, r) and names (C, d)."""
        asked = self.names(queries).expand(len(regions), -1, -1)
        return self.classifier(self.dropout(self.decoder(asked, self.regions(regions))))

    @torch.inference_mode()
    def scores(
        self, model: ClipModel, images: Iterable[Tensor], label_names: Sequence[str], prompts: Prompts
    ) -> Scores:
        """Score findings, those of the training or others, by the decoder's probabilities; there are no prompts."""
        queries = self.queries if list(label_names) == self.label_names else name_queries(model, label_names)
        embeddings, present = [], []
        with evaluating(model):
            for part in images:
                image = model.image_features(part.to(model.device))
                embeddings.append(normalize(image.embedding.float(), dim=1).cpu().numpy())
                logits = self.existence(image.regions, queries.to(model.device)).float()
                present.append(logits.softmax(2)[..., 1].cpu().numpy())
        found = np.concatenate(present)
        return Scores(np.concatenate(embeddings), found, np.full_like(found, np.nan))


def name_queries(model: ClipModel, label_names: Sequence[str]) -> Tensor:
    """The text embeddings of the findings' names in lower case: (C, d), of norm √d, as normalised states have."""
    names = torch.from_numpy(encode_prompts(model, [name.lower() for name in label_names], ("{}",)))
    return (names * names.shape[1] ** 0.5).to(model.device)
