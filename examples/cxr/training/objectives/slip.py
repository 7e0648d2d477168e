"""SLIP (Mu et al. 2022, "SLIP: Self-supervision meets Language-Image Pre-training")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_metric_learning.losses import SupConLoss
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor, nn

from cxr.clip import ClipModel
from cxr.data.views import RADIOGRAPHS, Distortion
from cxr.training.objective import Batch, Outcome, over_batch
from cxr.training.objectives.clip import Clip
from tmixture.losses.contrastive import Duplicates, contrastive_terms
from tmixture.precision import full_precision

SELF_WEIGHT = 1.0
TEMPERATURE = 0.1
# Widths of the projector in those of the common space: 4096, 4096 and 256 for a ViT-B, whose space has 512.
HIDDEN, OUTPUT = 8.0, 0.5


class Slip(Clip):
    """CLIP's loss and 1.0 times SimCLR's (τ = 0.1), of two distorted views through a projector of their own.

    Args:
        model: whose features before the projection go into the projector.
        label_names: the C findings.
        duplicates: see `Objective`.
        distortion: what a view may differ by from the image.
    """

    def __init__(
        self,
        model: ClipModel,
        label_names: Sequence[str],
        *,
        duplicates: Duplicates = "labels",
        distortion: Distortion = RADIOGRAPHS,
    ) -> None:
        super().__init__(model, label_names, duplicates=duplicates)
        self.distortion = distortion
        width, size = model.feature_sizes.pooled, model.embedding_size
        hidden, output = round(HIDDEN * size), round(OUTPUT * size)
        self.projector = nn.Sequential(
            *[nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()],
            *[nn.Linear(hidden, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()],
            nn.Linear(hidden, output, bias=False),
        )
        self.simclr = SupConLoss(TEMPERATURE, reducer=DoNothingReducer())

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image: all of them have views, not all a caption."""
        grey = batch.pixels[:, :1]
        views = [self.distortion(grey, batch.generator) for _ in range(2)]
        features = model.image_features(torch.cat([grey, *views]))
        images, texts = features.embedding[: len(grey)], batch.captions.embeddings(model)
        projected = self.projector(features.pooled[len(grey) :])
        given = batch.captions.given
        with full_precision(batch.device):
            pairs = contrastive_terms(images[given], texts[given], model.logit_scale, self.targets(batch))
            terms = over_batch(pairs, given) + SELF_WEIGHT * self.view_terms(projected.float())
        return Outcome(images, texts, terms)

    def view_terms(self, views: Tensor) -> Tensor:
        """SimCLR's loss of each image, from the first views of all and then the second ones: (2B, e) → (B,)."""
        numbers = torch.arange(len(views) // 2, device=views.device).repeat(2)
        return self.simclr(views, numbers)["loss"]["losses"].view(2, -1).mean(0)
