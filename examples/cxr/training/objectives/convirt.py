"""ConVIRT (Zhang et al. 2022, "Contrastive Learning of Medical Visual Representations from Paired Images and Text")."""

from __future__ import annotations

from cxr.clip import ClipModel
from cxr.training.objective import Batch, Objective, Outcome, over_batch
from tmixture.losses.contrastive import contrastive_terms
from tmixture.precision import full_precision

TEMPERATURE = 0.1
IMAGE_TO_TEXT = 0.75


class ConVirt(Objective):
    """0.75·CE(vtᵀ/τ) + 0.25·CE(tvᵀ/τ) with τ = 0.1 that is not learned (its equations 2 to 4 and section 4)."""

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image."""
        images, texts = model.encode_image(batch.pixels), batch.captions.embeddings(model)
        given = batch.captions.given
        with full_precision(batch.device):
            terms = contrastive_terms(
                images[given], texts[given], 1 / TEMPERATURE, self.targets(batch), image_to_text=IMAGE_TO_TEXT
            )
        return Outcome(images, texts, over_batch(terms, given))
