"""CLIP's contrastive loss (Radford et al. 2021), as CheXzero uses it: the objective of the paper's own arms."""

from __future__ import annotations

from cxr.clip import ClipModel
from cxr.training.objective import Batch, Objective, Outcome, over_batch
from tmixture.losses.contrastive import contrastive_terms
from tmixture.precision import full_precision


class Clip(Objective):
    """½[CE(s·vtᵀ) + CE(s·tvᵀ)] over the images that have a caption, s the model's own scale."""

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image."""
        images, texts = model.encode_image(batch.pixels), batch.captions.embeddings(model)
        given = batch.captions.given
        with full_precision(batch.device):
            terms = contrastive_terms(images[given], texts[given], model.logit_scale, self.targets(batch))
        return Outcome(images, texts, over_batch(terms, given))
