"""CLIP's loss with weights and identical captions: cross-entropy as torch has it, naive loops, finite differences."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tmixture.losses import ContrastiveLoss
from tmixture.losses.contrastive import contrastive_targets, jaccard

B, D = 7, 5
SCALE = torch.tensor(9.0, dtype=torch.float64)


def contrastive_loss(*embeddings, duplicates="share", **given):
    return ContrastiveLoss(duplicates)(*embeddings, **given)


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(B, D, generator=generator) * 3 for _ in range(2))
    return images, texts


def naive_loss(images, texts, scale, targets, weights):
    """Both directions by loops over pairs, on unit vectors."""
    n = len(images)
    cosine = [[torch.cosine_similarity(v, t, dim=0) for t in texts] for v in images]
    total = 0.0
    for i in range(n):
        to_text = [math.exp(scale * cosine[i][j]) for j in range(n)]
        to_image = [math.exp(scale * cosine[j][i]) for j in range(n)]
        for j in range(n):
            mass = float(targets[i][j])
            total -= weights[i] * mass * math.log(to_text[j] / sum(to_text)) / 2
            total -= weights[i] * mass * math.log(to_image[j] / sum(to_image)) / 2
    return total / n


def test_distinct_captions_give_clips_loss_under_every_rule(pairs):
    images, texts = pairs
    labels = torch.eye(B)
    logits = 9 * torch.cosine_similarity(images[:, None], texts, dim=2)
    expected = (cross_entropy(logits, torch.arange(B)) + cross_entropy(logits.T, torch.arange(B))) / 2
    for duplicates in ("ignore", "share", "labels"):
        loss = contrastive_loss(images, texts, SCALE, caption_ids=torch.arange(B), duplicates=duplicates, labels=labels)
        torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(contrastive_loss(images, texts, SCALE), expected)


@pytest.mark.parametrize("duplicates", ["ignore", "share", "labels"])
def test_against_loops_with_weights_and_missing_captions(pairs, duplicates):
    images, texts = pairs
    caption_ids = torch.tensor([3, -1, 0, 3, 8, -1, 3])
    labels = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 1, 0]])
    weights = torch.tensor([0.5, 9.0, 2.0, 1.0, 0.0, 9.0, 3.0])
    targets = {
        "ignore": torch.eye(5),
        "share": [
            [1 / 3, 0, 1 / 3, 0, 1 / 3],
            [0, 1, 0, 0, 0],
            [1 / 3, 0, 1 / 3, 0, 1 / 3],
            [0, 0, 0, 1, 0],
            [1 / 3, 0, 1 / 3, 0, 1 / 3],
        ],
        # Jaccard similarities by hand, each row divided by its sum; the kept rows' labels are 110, 010, 110, 111, 110
        "labels": [
            [x / sum(row) for x in row]
            for row in (
                [1, 1 / 2, 1, 2 / 3, 1],
                [1 / 2, 1, 1 / 2, 1 / 3, 1 / 2],
                [1, 1 / 2, 1, 2 / 3, 1],
                [2 / 3, 1 / 3, 2 / 3, 1, 2 / 3],
                [1, 1 / 2, 1, 2 / 3, 1],
            )
        ],
    }[duplicates]
    kept = [0, 2, 3, 4, 6]
    loss = contrastive_loss(
        images, texts, SCALE, caption_ids=caption_ids, duplicates=duplicates, labels=labels, weights=weights
    )
    expected = naive_loss(images[kept].double(), texts[kept].double(), 9.0, targets, weights[kept].tolist())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("duplicates", ["ignore", "share", "labels"])
def test_gradients_against_finite_differences(pairs, duplicates):
    images, texts = (x.double().requires_grad_() for x in pairs)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    caption_ids = torch.tensor([0, 0, -1, 1, 2, 1, 3])
    labels = (torch.arange(B)[:, None] >> torch.arange(3)) & 1
    weights = torch.linspace(0.1, 2, B, dtype=torch.float64)

    def loss(images, texts, scale):
        return contrastive_loss(
            images, texts, scale, caption_ids=caption_ids, duplicates=duplicates, labels=labels, weights=weights
        )

    assert torch.autograd.gradcheck(loss, (images, texts, scale))


def test_pairs_without_caption_receive_no_gradient(pairs):
    images, texts = (x.requires_grad_() for x in pairs)
    loss = contrastive_loss(images, texts, SCALE, caption_ids=torch.tensor([0, -1, 1, 2, -1, 3, 4]))
    gradients = torch.autograd.grad(loss, (images, texts))
    for gradient in gradients:
        assert ((gradient != 0).any(dim=1) == torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()).all()


def test_a_batch_without_captions_is_zero_and_can_be_differentiated(pairs):
    images, texts = (x.requires_grad_() for x in pairs)
    loss = contrastive_loss(images, texts, SCALE, caption_ids=torch.full((B,), -1))
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (images, texts)):
        assert (gradient == 0).all()


def test_sharing_makes_identical_captions_no_negatives_of_each_other():
    """At the optimum for two images of one caption the shared loss has no gradient; CLIP's own pushes on."""
    images = torch.tensor([[1.0, 0.2], [1.0, -0.2]], requires_grad=True)
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    ids = torch.tensor([4, 4])
    shared = contrastive_loss(images, texts, SCALE, caption_ids=ids, duplicates="share")
    assert shared.item() == pytest.approx(math.log(2), abs=0.02)  # the entropy of the target: nothing left to gain
    texts = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    symmetric = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    (shared,) = torch.autograd.grad(
        contrastive_loss(symmetric, texts, SCALE, caption_ids=ids, duplicates="share"), symmetric
    )
    (alone,) = torch.autograd.grad(
        contrastive_loss(symmetric, texts, SCALE, caption_ids=ids, duplicates="ignore"), symmetric
    )
    assert shared.abs().max() < 1e-5 < alone.abs().max()


def test_jaccard_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    labels = torch.randint(0, 2, (12, 6), generator=torch.Generator().manual_seed(1))
    labels[3] = labels[5] = 0
    expected = [[metrics.jaccard_score(a, b, zero_division=1) for b in labels.numpy()] for a in labels.numpy()]
    torch.testing.assert_close(jaccard(labels.float()), torch.tensor(expected, dtype=torch.float32))


def test_half_precision_and_autocast_give_the_float32_loss(pairs):
    images, texts = (x.bfloat16() for x in pairs)
    ids = torch.arange(B)
    expected = contrastive_loss(images.float(), texts.float(), torch.tensor(100.0), caption_ids=ids)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, torch.tensor(100.0), caption_ids=ids)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_bad_input_is_named(pairs):
    images, texts = pairs
    ids = torch.arange(B)
    with pytest.raises(ValueError, match="weights has 3 rows, but there are 7 images"):
        contrastive_loss(images, texts, SCALE, caption_ids=ids, weights=torch.ones(3))
    with pytest.raises(ValueError, match="text_embeddings has 6 rows, but there are 7"):
        contrastive_loss(images, texts[1:], SCALE, caption_ids=ids)
    with pytest.raises(ValueError, match="labels must be given"):
        contrastive_targets(ids, "labels")
    with pytest.raises(ValueError, match="duplicates must be one of 'ignore', 'share', 'labels', got 'drop'"):
        ContrastiveLoss("drop")
