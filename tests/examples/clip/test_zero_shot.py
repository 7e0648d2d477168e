import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from cxr.clip import ClipModel
from cxr.clip.zero_shot import (
    Prompts,
    encode_classes,
    encode_images,
    ensemble,
    without_common_axis,
    zero_shot_probabilities,
)

LABELS = ("Normal", "Pleural Effusion", "Round(ed) Atelectasis")


class LetterClip(ClipModel):
    """Embeds a text by its letter counts and an image by a linear map, both far from unit norm."""

    def __init__(self):
        super().__init__(image_size=4)
        self.image = torch.nn.Linear(3 * 16, 27)
        self.text = torch.nn.Embedding(27, 27)
        self.dropout = torch.nn.Dropout(0.5)  # shows whether the model is evaluated in evaluation mode

    def encode_image(self, images):
        return self.dropout(self.image(self._three_channels(images).flatten(1)))

    def encode_text(self, tokens):
        return self.dropout(self.text(tokens).sum(dim=1))

    def tokenize(self, texts):
        ids = [[max(0, ord(letter) - 96) if letter.isalpha() else 0 for letter in text] for text in texts]
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=0)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LetterClip()
        model.text.weight.data[0] = 0  # padding adds nothing
    return model


def unit(vector):
    return vector / math.sqrt(float((vector**2).sum()))


def test_against_chexzero_in_loops(model):
    images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    positive, negative = ("{}", "signs of {} are seen"), ("no {}", "{} is absent", "without {}")
    found = zero_shot_probabilities(
        encode_images(model, [images[:3], images[3:]], progress=False),
        encode_classes(model, LABELS, Prompts(positive, negative)),
    )
    model.eval()

    def class_embedding(name, templates):
        prompts = [template.replace("{}", name.lower()) for template in templates]
        return unit(sum(unit(model.encode_text(model.tokenize([prompt]))[0].detach()) for prompt in prompts))

    for i, image in enumerate(images):
        v = unit(model.encode_image(image[None])[0].detach())
        for k, name in enumerate(LABELS):
            pos = math.exp(float(v @ class_embedding(name, positive)))
            neg = math.exp(float(v @ class_embedding(name, negative)))
            assert found[i, k] == pytest.approx(pos / (pos + neg), abs=1e-6)


def test_prompts_are_written_in_the_style_of_the_captions(model):
    prompts = []
    tokenize = model.tokenize
    model.tokenize = lambda texts: prompts.extend(texts) or tokenize(texts)
    encode_classes(model, LABELS)
    assert prompts == [
        *("normal", "pleural effusion", "round(ed) atelectasis"),
        *("no normal", "no pleural effusion", "no round(ed) atelectasis"),
    ]
    prompts.clear()
    encode_classes(
        model, LABELS, prompt_text=lambda name: f"{name.upper()} IS PRESENT", aliases={"Normal": "healthy chest"}
    )
    assert prompts[:2] == ["HEALTHY CHEST IS PRESENT", "PLEURAL EFFUSION IS PRESENT"]
    assert prompts[3] == "no HEALTHY CHEST IS PRESENT"


def test_swapping_the_templates_gives_the_complement(model):
    embeddings = encode_images(model, [torch.randn(6, 3, 4, 4)], progress=False)
    p = zero_shot_probabilities(embeddings, encode_classes(model, LABELS))
    q = zero_shot_probabilities(embeddings, encode_classes(model, LABELS, Prompts(("no {}",), ("{}",))))
    np.testing.assert_allclose(p + q, 1, atol=1e-6)


def test_a_label_that_denies_all_others_is_opposed_to_them(model):
    """ "no normal" is no sentence of a report, and every "no …" one of healthy images."""
    prompts = Prompts(healthy=("Normal", "No Finding"))
    plain, opposed = encode_classes(model, LABELS), encode_classes(model, LABELS, prompts)
    np.testing.assert_array_equal(opposed[0], plain[0])
    np.testing.assert_array_equal(opposed[1, 1:], plain[1, 1:])
    np.testing.assert_allclose(opposed[1, 0], unit(plain[0, 1] + plain[0, 2]), rtol=1e-6)
    alone = encode_classes(model, ("Normal",), prompts)
    np.testing.assert_array_equal(alone, encode_classes(model, ("Normal",)))


def test_images_keep_their_order_and_the_model_its_mode(model):
    images, labels = torch.randn(10, 3, 4, 4), torch.arange(10)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    model.train()
    embeddings = encode_images(model, loader, progress=False)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    np.testing.assert_allclose(embeddings, encode_images(model, [images], progress=False), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_ensembles_average_probabilities():
    parts = [np.full((2, 3), p, dtype=np.float32) for p in (0.1, 0.2, 0.6)]
    np.testing.assert_allclose(ensemble(parts), np.full((2, 3), 0.3), rtol=1e-6)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match=r"negative: \['not there'\] given.*each with a"):
        Prompts(negative=("not there",))
    with pytest.raises(ValueError, match=r"positive: \[\] given"):
        Prompts(positive=())
    with pytest.raises(ValueError, match=r"aliases: \['Norml'\]"):
        encode_classes(model, LABELS, aliases={"Norml": "healthy"})
    with pytest.raises(ValueError, match="batches: none"):
        encode_images(model, [], progress=False)
    with pytest.raises(ValueError, match=r"images: \(2, 3, 5, 5\).*\(B, 1 or 3, 4, 4\)"):
        encode_images(model, [torch.randn(2, 3, 5, 5)], progress=False)


def test_without_their_common_axis_embeddings_do_not_differ_along_it():
    rng = np.random.default_rng(0)
    axis = rng.normal(size=8)
    axis /= np.linalg.norm(axis)
    embeddings = rng.normal(size=(200, 8)) + 10 * rng.normal(size=(200, 1)) * axis
    left = without_common_axis(embeddings)
    np.testing.assert_allclose(left.mean(0), embeddings.mean(0))
    assert (left @ axis).std() < 0.2
    other = rng.normal(size=8)
    other -= (other @ axis) * axis
    np.testing.assert_allclose(left @ other, embeddings @ other, atol=1.0)
