"""GLoRIA (Huang et al. 2021, "GLoRIA: A Multimodal Global-Local Representation Learning Framework")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cxr.clip import ClipModel, TextFeatures, evaluating
from cxr.clip.zero_shot import Prompts, encode_classes, oppose_healthy, probabilities, without_common_axis
from cxr.training.objective import Batch, FloatArray, Objective, Outcome, Scores, over_batch
from tmixture.losses.contrastive import Duplicates, contrastive_terms, soft_cross_entropy
from tmixture.precision import full_precision

# Of the attention over regions, of the sum over words, and of the softmax over a batch.
ATTENTION, WORDS, PAIRS = 4.0, 5.0, 10.0


class Gloria(Objective):
    """A contrast of whole images and texts, and one of their regions and words, each with the mean of both directions.

    Args:
        model: with regions and words, which two linear heads bring into one space.
        label_names: the C findings.
        duplicates: see `Objective`.
    """

    def __init__(self, model: ClipModel, label_names: Sequence[str], *, duplicates: Duplicates = "labels") -> None:
        super().__init__(model, label_names, duplicates=duplicates)
        sizes = model.feature_sizes
        self.regions = nn.Linear(sizes.regions, model.embedding_size, bias=False)
        self.words = nn.Linear(sizes.words, model.embedding_size, bias=False)

    def forward(self, model: ClipModel, batch: Batch) -> Outcome:
        """Embeddings of a batch, and its loss image by image."""
        image, text = model.image_features(batch.pixels), model.text_features(batch.captions.tokens)
        regions, words = self.regions(image.regions), self.words(text.words)
        texts, given = batch.captions.spread(text.embedding), batch.captions.given
        with full_precision(batch.device):
            targets = self.targets(batch)
            terms = contrastive_terms(image.embedding[given], texts[given], PAIRS, targets)
            similarity = word_similarity(regions[given].float(), words.float(), text.is_word)
            logits = PAIRS * similarity.exp().sum(2).log()[:, batch.captions.position[given]]
            terms = terms + (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets)) / 2
        return Outcome(image.embedding, texts, over_batch(terms, given))

    @torch.inference_mode()
    def scores(
        self, model: ClipModel, images: Iterable[Tensor], label_names: Sequence[str], prompts: Prompts
    ) -> Scores:
        """Score findings by the mean of the global similarity and of the local one, that of the best word.

        Zero-shot by "x" and "no x" is CheXzero's; GLoRIA itself compares classes of which one is there.
        """
        classes = encode_classes(model, label_names, prompts)
        embeddings, local = [], []
        with evaluating(model):
            asked = [self._asked(model, texts) for texts in prompts.texts(label_names)]
            for part in images:
                image = model.image_features(part.to(model.device))
                embeddings.append(normalize(image.embedding.float(), dim=1).cpu().numpy())
                regions = self.regions(image.regions).float()
                local.append(np.stack([self._best_words(regions, *texts) for texts in asked]))
        embedded, found = (
            np.concatenate(embeddings),
            oppose_healthy(np.concatenate(local, axis=2), label_names, prompts),
        )
        whole, bare = (classes @ rows.T for rows in (embedded, without_common_axis(embedded)))
        return Scores(embedded, *(probabilities((part + found) / 2) for part in (whole, bare)))

    def _asked(self, model: ClipModel, texts: Sequence[Sequence[str]]) -> tuple[TextFeatures, int]:
        """The features of C classes' prompts, T for each, and T."""
        tokens = model.tokenize([text for prompts in texts for text in prompts]).to(model.device)
        return model.text_features(tokens), len(texts[0])

    def _best_words(self, regions: Tensor, text: TextFeatures, n_templates: int) -> FloatArray:
        """The local similarity of classes and images, the mean over templates: (B, R, d) → (C, B)."""
        similarity = word_similarity(regions, self.words(text.words).float(), text.is_word)
        return similarity.amax(2).unflatten(1, (-1, n_templates)).mean(2).T.cpu().numpy()


def word_similarity(regions: Tensor, words: Tensor, is_word: Tensor) -> Tensor:
    """How well each word of each text is found in each image: (B, R, d), (U, L, d), (U, L) → (B, U, L).

    5·cos(w, c), where the context c is the mean of the regions under the attention of the word w: softmax over words of
    the products, times 4, softmax over regions (the paper's equations 3 to 5, as in the authors' code). What is no word
    has −∞.

    The contexts (B, U, L, d) are not written out: w·c and ‖c‖² follow from the products and from those of the regions.
    """
    products = torch.einsum("brd,uld->bulr", regions, words)
    attention = products.masked_fill(~is_word[:, :, None], -torch.inf).softmax(2)
    attention = (ATTENTION * attention).softmax(3)
    inner = (attention * products).sum(3)
    gram = regions @ regions.transpose(1, 2)
    length = (torch.einsum("bulr,brs->buls", attention, gram) * attention).sum(3).clamp(min=1e-16).sqrt()
    cosine = inner / (length * words.norm(dim=2)).clamp(min=1e-8)
    return (WORDS * cosine).masked_fill(~is_word, -torch.inf)
