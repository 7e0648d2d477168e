"""Captions on their way into the text encoder, and the excerpts of reports that a starting point is trained on."""

import numpy as np
import pytest
import torch

from cxr.data.texts import captions_of, tokenize
from cxr.simulation.dictation import LONGEST_EXCERPT, excerpts, in_turn, sentences


class Lengths(torch.nn.Module):
    """A text encoder that counts: token ids are the lengths of the words, an embedding is their sum and number."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.encoded = 0

    def tokenize(self, texts):
        return torch.tensor([([len(word) for word in text.split()] + [0] * 4)[:4] for text in texts])

    def encode_text(self, tokens):
        self.encoded += len(tokens)
        return torch.stack([tokens.sum(1), (tokens > 0).sum(1)], dim=1).float()


def test_captions_and_excerpts_take_turns():
    caption, report = "mass is present", "No effusion. Large mass. Clear lungs."
    texts = in_turn(caption, report, 2000, np.random.default_rng(0))
    assert texts.count(caption) / 2000 == pytest.approx(0.5, abs=0.05)
    assert set("".join(texts).replace(caption, "")) <= set(report)
    assert "No effusion." in texts
    assert in_turn(caption, None, 3, np.random.default_rng(0)) == [caption] * 3
    alone = in_turn(None, report, 50, np.random.default_rng(0))
    assert None not in alone
    assert in_turn(None, None, 2, np.random.default_rng(0)) == [None, None]


def test_rows_get_their_own_caption_and_equal_ones_are_encoded_once():
    model = Lengths()
    texts = tokenize(model, [["a bb"], ["ccc"], [None], ["a bb"]])
    captions = captions_of(texts, torch.tensor([3, 2, 1, 0]), 0, model.device)
    embeddings, ids = captions.embeddings(model), captions.ids
    assert captions.given.tolist() == [True, False, True, True]
    assert embeddings.tolist() == [[3, 2], [0, 0], [3, 1], [3, 2]]
    assert ids[0] == ids[3] != ids[2]
    assert ids[1] < 0
    assert model.encoded == 2


def test_every_epoch_has_its_own_captions_and_they_come_round_again():
    model = Lengths()
    texts = tokenize(model, [["a", "bb"], ["ccc", None]])
    rows = torch.tensor([0, 1])
    first, second, third = (
        captions_of(texts, rows, epoch, model.device).embeddings(model)[:, 0].tolist() for epoch in range(3)
    )
    assert (first, second, third) == ([1, 3], [2, 0], [1, 3])


def test_captions_that_are_all_missing_are_refused():
    with pytest.raises(ValueError, match="no image has one"):
        tokenize(Lengths(), [[None], [None]])


def test_excerpts_are_whole_sentences_of_the_report_without_repeats():
    report = "No pneumothorax. Small left effusion, unchanged. Is there edema? Normal heart size."
    sentences = {"No pneumothorax.", "Small left effusion, unchanged.", "Is there edema?", "Normal heart size."}
    drawn = excerpts(report, 200, np.random.default_rng(0))
    assert len(drawn) == 200
    for text in drawn:
        found = [sentence for sentence in sentences if sentence in text]
        assert 1 <= len(found) <= LONGEST_EXCERPT
        assert len(text) == sum(map(len, found)) + len(found) - 1
    assert {text for text in drawn if text in sentences} == sentences


def test_an_excerpt_of_one_sentence_is_that_sentence():
    assert set(excerpts("Clear lungs.", 5, np.random.default_rng(0))) == {"Clear lungs."}


def test_sentences_are_single_ones_of_the_report():
    drawn = sentences("No effusion. Large mass? Clear lungs.", 300, np.random.default_rng(0))
    assert len(drawn) == 300
    assert set(drawn) == {"No effusion.", "Large mass?", "Clear lungs."}
