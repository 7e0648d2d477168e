"""The systems of Table 2 against their formulas in loops, what they must not depend on, and that they train."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from cxr.clip import load_clip
from cxr.clip.zero_shot import PROMPTS, encode_prompts
from cxr.data.texts import captions_of, tokenize
from cxr.data.views import PHOTOGRAPHS, RADIOGRAPHS, Distortion
from cxr.training.objective import Batch, over_batch
from cxr.training.objectives.clip import Clip
from cxr.training.objectives.convirt import ConVirt
from cxr.training.objectives.gloria import Gloria, word_similarity
from cxr.training.objectives.medclip import MedClip
from cxr.training.objectives.medklip import MedKlip
from cxr.training.objectives.slip import Slip
from tmixture.losses import ContrastiveLoss

FINDINGS = ["Normal", "Mass", "Edema", "Lung Nodule"]
OBJECTIVES = [Clip, ConVirt, MedClip, Slip, Gloria, MedKlip]
LABELS = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]).bool()
CAPTIONS = [" ".join(f"{name.lower()} is present" for name, there in zip(FINDINGS, row) if there) for row in LABELS]


@pytest.fixture(scope="module")
def model():
    return load_clip("small-conv", captions=[*CAPTIONS, "no mass"], image_size=16).eval()


def make(objective, model, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return objective(model, FINDINGS, **settings).eval()


def make_batch(model, order=None, others=None, seed=0):
    """Six images, the first and the fourth with one caption, the fifth with none."""
    texts = tokenize(model, [[caption or None] for caption in CAPTIONS])
    order = torch.arange(6) if order is None else order
    pixels = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))[order]
    captions = captions_of(texts, order, 0, torch.device("cpu"))
    if others is not None:
        others = captions_of(texts, others, 0, torch.device("cpu")), LABELS[others]
    labelled = torch.ones(6, dtype=torch.bool)
    return Batch(pixels, captions, LABELS[order], labelled, torch.Generator().manual_seed(seed), others)


def gradients(model, loss):
    return torch.autograd.grad(loss, [model.visual[0].weight, model.visual[-1].weight], retain_graph=True)


def check(model, outcome, expected, captioned=(0, 1, 2, 3, 5)):
    """The mean of the terms and its gradient are those of the loop, whose terms are those of the captioned images."""
    n = len(captioned)
    for i, term in zip(captioned, expected):
        assert outcome.terms[i].item() == pytest.approx(term.item() * 6 / n, rel=1e-4)
    loss = sum(expected) / n
    assert outcome.terms.mean().item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(gradients(model, outcome.terms.mean()), gradients(model, loss)):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-3)


def shares(i, rows, duplicates):
    """The target of row i over rows in loops."""
    if duplicates == "ignore":
        values = [float(i == j) for j in rows]
    elif duplicates == "share":
        values = [float(CAPTIONS[i] == CAPTIONS[j]) for j in rows]
    else:
        values = [float((LABELS[i] & LABELS[j]).sum() / (LABELS[i] | LABELS[j]).sum()) for j in rows]
    return [value / sum(values) for value in values]


def cross_entropy(logits, target):
    total = torch.logsumexp(torch.stack(logits), 0)
    return sum(share * (total - logit) for share, logit in zip(target, logits))


def embedded(model, rows):
    batch = make_batch(model)
    images = model.encode_image(batch.pixels)
    return {i: images[i] for i in rows}, {i: model.encode_text(model.tokenize([CAPTIONS[i]]))[0] for i in rows}


ROWS = (0, 1, 2, 3, 5)


@pytest.mark.parametrize("duplicates", ["ignore", "share", "labels"])
@pytest.mark.parametrize(("objective", "to_text"), [(Clip, 0.5), (ConVirt, 0.75)])
def test_clip_and_convirt_in_loops(model, objective, to_text, duplicates):
    images, texts = embedded(model, ROWS)
    scale = model.logit_scale.item() if objective is Clip else 10.0

    def logit(i, j):
        return scale * cosine_similarity(images[i], texts[j], dim=0)

    expected = []
    for i in ROWS:
        target = shares(i, ROWS, duplicates)
        there = cross_entropy([logit(i, j) for j in ROWS], target)
        back = cross_entropy([logit(j, i) for j in ROWS], target)
        expected.append(to_text * there + (1 - to_text) * back)
    outcome = make(objective, model, duplicates=duplicates)(model, make_batch(model))
    check(model, outcome, expected)
    assert (outcome.texts[4] == 0).all()


def test_clip_is_the_librarys_contrastive_loss(model):
    batch = make_batch(model)
    outcome = make(Clip, model)(model, batch)
    weights = torch.rand(6)
    loss = ContrastiveLoss("labels")(
        outcome.images, outcome.texts, model.logit_scale, caption_ids=batch.captions.ids, labels=LABELS, weights=weights
    )
    torch.testing.assert_close((outcome.terms * weights).mean(), loss)


@pytest.mark.parametrize("others", [None, torch.tensor([5, 3, 4, 1, 2, 2])])
def test_medclip_in_loops(model, others):
    images, texts = embedded(model, ROWS)
    columns = ROWS if others is None else [int(j) for j in others if CAPTIONS[j]]

    def similarity(i, j):
        return float(cosine_similarity(LABELS[i].float(), LABELS[j].float(), dim=0))

    def softmax(values):
        return [math.exp(value) / sum(map(math.exp, values)) for value in values]

    def logit(i, j):
        return model.logit_scale * cosine_similarity(images[i], texts[j], dim=0)

    there = [cross_entropy([logit(i, j) for j in columns], softmax([similarity(i, j) for j in columns])) for i in ROWS]
    back = [cross_entropy([logit(i, j) for i in ROWS], softmax([similarity(i, j) for i in ROWS])) for j in columns]
    if others is not None:
        back = [sum(back) / len(back)] * len(ROWS)
    objective = make(MedClip, model, decoupled=others is not None)
    assert objective.draws_others == (others is not None)
    check(model, objective(model, make_batch(model, others=others)), [(a + b) / 2 for a, b in zip(there, back)])


def test_slip_in_loops(model):
    objective = make(Slip, model)
    outcome = objective(model, make_batch(model))
    clip = make(Clip, model)(model, make_batch(model))
    torch.testing.assert_close(outcome.images, clip.images, atol=1e-5, rtol=1e-4)
    batch, generator = make_batch(model), torch.Generator().manual_seed(0)
    views = [RADIOGRAPHS(batch.pixels, generator) for _ in range(2)]
    z = [objective.projector(model.image_features(view).pooled) for view in views]

    def logit(a, b):
        return cosine_similarity(a, b, dim=0) / 0.1

    terms = []
    for i in range(6):
        term = 0.0
        for one, other in ((0, 1), (1, 0)):
            rest = [logit(z[one][i], z[view][j]) for view in (0, 1) for j in range(6) if (view, j) != (one, i)]
            term += (torch.logsumexp(torch.stack(rest), 0) - logit(z[one][i], z[other][i])) / 2
        terms.append(clip.terms[i] + term)
    for ours, theirs in zip(outcome.terms, terms):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    for ours, theirs in zip(gradients(model, outcome.terms.mean()), gradients(model, sum(terms) / 6)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=2e-3)


def local_similarity(regions, words):
    """5·cos of each word with the regions that it attends to, in loops as in the paper's equations."""
    products = [[float(region @ word) for word in words] for region in regions]
    found = []
    for w, word in enumerate(words):
        shares = [math.exp(row[w]) / sum(map(math.exp, row)) for row in products]
        attention = [math.exp(4 * share) for share in shares]
        context = sum(a / sum(attention) * region for a, region in zip(attention, regions))
        found.append(float(5 * cosine_similarity(word, context, dim=0)))
    return found


def test_glorias_similarity_of_words_in_loops():
    generator = torch.Generator().manual_seed(2)
    regions, words = torch.randn(3, 5, 4, generator=generator), torch.randn(2, 6, 4, generator=generator)
    is_word = torch.tensor([[False, True, True, True, False, False], [False, True, True, True, True, True]])
    found = word_similarity(regions, words, is_word)
    for b in range(3):
        for u in range(2):
            expected = local_similarity(regions[b], words[u][is_word[u]])
            np.testing.assert_allclose(found[b, u][is_word[u]], expected, rtol=1e-4)
            assert (found[b, u][~is_word[u]] == -torch.inf).all()
    # what stands where there is no word does not matter, and gradients are finite
    changed = words.masked_fill(~is_word[:, :, None], 7.0).requires_grad_()
    torch.testing.assert_close(word_similarity(regions, changed, is_word), found)
    word_similarity(regions, changed, is_word).exp().sum().backward()
    assert changed.grad.isfinite().all()
    assert (changed.grad[~is_word] == 0).all()


@pytest.mark.parametrize("duplicates", ["ignore", "labels"])
def test_gloria_in_loops(model, duplicates):
    objective = make(Gloria, model, duplicates=duplicates)
    images, texts = embedded(model, ROWS)
    regions = objective.regions(model.image_features(make_batch(model).pixels).regions)
    words = {}
    for i in ROWS:
        text = model.text_features(model.tokenize([CAPTIONS[i]]))
        words[i] = objective.words(text.words)[0][text.is_word[0]]

    def local(i, j):
        both = word_similarity(regions[i : i + 1], words[j][None], torch.ones(1, len(words[j]), dtype=torch.bool))
        return 10 * both.exp().sum().log()

    def whole(i, j):
        return 10 * cosine_similarity(images[i], texts[j], dim=0)

    expected = []
    for i in ROWS:
        target = shares(i, ROWS, duplicates)
        directions = [[logit(i, j) for j in ROWS] for logit in (local, whole)]
        directions += [[logit(j, i) for j in ROWS] for logit in (local, whole)]
        expected.append(sum(cross_entropy(logits, target) for logits in directions) / 2)
    check(model, objective(model, make_batch(model)), expected)


def test_medklip_in_loops(model):
    objective, batch = make(MedKlip, model), make_batch(model)
    outcome = objective(model, batch)
    names = encode_prompts(model, [name.lower() for name in FINDINGS], ("{}",)) * model.embedding_size**0.5
    regions = model.image_features(batch.pixels).regions
    terms = []
    for i in range(6):
        logits = objective.existence(regions[i : i + 1], torch.from_numpy(names))[0]
        terms.append(-sum(logits[c].log_softmax(0)[int(LABELS[i, c])] for c in range(4)) / 4)
        assert float(outcome.terms[i]) == pytest.approx(terms[-1].item(), rel=1e-4)
    ours = torch.autograd.grad(outcome.terms.mean(), model.visual[0].weight)[0]
    torch.testing.assert_close(
        ours, torch.autograd.grad(sum(terms) / 6, model.visual[0].weight)[0], atol=1e-6, rtol=1e-3
    )
    # the order in which findings are asked for does not matter
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        objective.existence(regions, objective.queries[order]),
        objective.existence(regions, objective.queries)[:, order],
        atol=1e-5,
        rtol=1e-4,
    )
    # images whose labels are not known take no part, and the text encoder is not trained
    labelled = torch.tensor([True, False, True, False, True, False])
    partly = Batch(batch.pixels, batch.captions, ~LABELS, labelled, batch.generator)
    known = Batch(
        batch.pixels, batch.captions, torch.where(labelled[:, None], ~LABELS, LABELS), labelled, batch.generator
    )
    torch.testing.assert_close(objective(model, partly).terms, objective(model, known).terms)
    assert (objective(model, partly).terms[~labelled] == 0).all()
    weight = model.text.text_model.embeddings.token_embedding.weight
    assert torch.autograd.grad(outcome.terms.mean(), weight, allow_unused=True) == (None,)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_order_of_a_batch_does_not_matter(model, objective):
    made = make(objective, model, **({"distortion": Distortion((1, 1), 0, 0, 0)} if objective is Slip else {}))
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    first, second = made(model, make_batch(model)), made(model, make_batch(model, order))
    if objective is Slip:  # the crops' proportions are drawn image by image
        first, second = (torch.stack([o.terms.mean() * 0, o.images.sum()]) for o in (first, second))
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
        return
    torch.testing.assert_close(second.terms, first.terms[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", [Clip, ConVirt, Slip, Gloria])
def test_images_of_one_caption_share_their_target(model, objective):
    """Where every caption of a batch is the same there is nothing to tell apart, and no gradient from texts."""
    texts = tokenize(model, [["mass is present"]] * 6)
    captions = captions_of(texts, torch.arange(6), 0, torch.device("cpu"))
    batch = Batch(
        torch.randn(6, 1, 16, 16), captions, LABELS, torch.ones(6, dtype=torch.bool), torch.Generator().manual_seed(0)
    )
    made = make(objective, model, duplicates="share")
    outcome = made(model, batch)
    if objective is Slip:
        outcome = Clip.forward(made, model, batch)
    expected = math.log(6) * (2 if objective is Gloria else 1)
    if objective is not Gloria:
        gradient = torch.autograd.grad(outcome.terms.mean(), outcome.texts, retain_graph=True)[0]
    assert len(outcome.terms) == 6
    assert float(outcome.terms.mean()) >= expected - 1e-4
    if objective is not Gloria:
        assert gradient.sum(0).abs().max() < 1e-4 or gradient.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_without_captions_has_a_finite_loss(model, objective):
    texts = tokenize(model, [["mass is present"], *[[None]] * 6])
    captions = captions_of(texts, torch.arange(1, 7), 0, torch.device("cpu"))
    nothing = torch.zeros(6, dtype=torch.bool)
    batch = Batch(torch.randn(6, 1, 16, 16), captions, LABELS, nothing, torch.Generator().manual_seed(0))
    outcome = make(objective, model)(model, batch)
    assert outcome.terms.isfinite().all()
    outcome.terms.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_encoders_may_run_in_half_precision_and_losses_do_not(model, objective):
    made = make(objective, model)
    exact = made(model, make_batch(model)).terms
    with torch.autocast("cpu", torch.bfloat16):
        outcome = made(model, make_batch(model))
    assert outcome.terms.dtype == torch.float32
    torch.testing.assert_close(outcome.terms, exact, atol=0.1, rtol=0.1)
    outcome.terms.mean().backward()
    gradients = [p.grad for p in made.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    model.zero_grad()


def test_terms_of_some_images_are_spread_over_all_with_the_same_mean():
    chosen = torch.tensor([True, False, True, False])
    terms = over_batch(torch.tensor([1.0, 3.0]), chosen)
    assert terms.tolist() == [2, 0, 6, 0]
    assert over_batch(torch.empty(0), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]


# ------------------------------------------------------------------ they train


def separable(n=256, seed=0):
    """Images with a bright quadrant for each of three findings, and captions that say or deny one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, 4, generator=generator) < 0.35
    labels[:, 0] = ~labels[:, 1:].any(1)
    pixels = 0.3 * torch.randn(n, 1, 32, 32, generator=generator)
    for c, (y, x) in {1: (0, 0), 2: (0, 16), 3: (16, 0)}.items():
        pixels[labels[:, c], 0, y : y + 16, x : x + 16] += 2
    asked = torch.randint(4, (n,), generator=generator)
    captions = [f"{'' if labels[i, c] else 'no '}{FINDINGS[c].lower()}" for i, c in enumerate(asked)]
    return pixels, labels, captions


def area_under_curve(scores, labels):
    """The chance that a positive image has a higher score than a negative one, mean over findings."""
    found = []
    for c in range(labels.shape[1]):
        positive, negative = scores[labels[:, c], c], scores[~labels[:, c], c]
        found.append((positive[:, None] > negative).mean() + (positive[:, None] == negative).mean() / 2)
    return np.mean(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "rate", "epochs"),
    [(ConVirt, 1e-3, 13), (MedClip, 1e-3, 25), (Slip, 1e-3, 7), (Gloria, 1e-3, 7), (MedKlip, 3e-4, 9)],
)
def test_it_learns_a_separable_problem_from_chance_to_near_perfect(objective, rate, epochs):
    pixels, labels, captions = separable()
    model = load_clip("small-conv", captions=captions[:40], image_size=32)
    made = make(objective, model, duplicates="share")
    texts = tokenize(model, [[caption] for caption in captions])

    def score():
        made.eval()
        test_pixels, test_labels, _ = separable(seed=1)
        found = made.scores(model, test_pixels.split(100), FINDINGS, PROMPTS["chexzero"])
        assert found.probabilities.shape == (256, 4)
        assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
        np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, rtol=1e-5)
        return area_under_curve(found.probabilities, test_labels.numpy())

    assert score() < 0.75
    optimizer = torch.optim.AdamW([*model.parameters(), *made.parameters()], lr=rate)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    for _ in range(epochs):
        model.train()
        made.train()
        for rows in torch.randperm(256, generator=generator).split(32):
            known = torch.ones(len(rows), dtype=torch.bool)
            captions_here = captions_of(texts, rows, 0, model.device)
            batch = Batch(pixels[rows], captions_here, labels[rows], known, generator)
            optimizer.zero_grad()
            made(model, batch).terms.mean().backward()
            optimizer.step()
    assert score() > 0.95, score()


def test_medklip_can_be_asked_for_a_finding_that_it_never_saw(model):
    objective = make(MedKlip, model)
    images = [torch.randn(3, 1, 16, 16)]
    own = objective.scores(model, images, FINDINGS, PROMPTS["chexzero"])
    assert np.isnan(own.without_axis).all()
    asked = objective.scores(model, images, [*FINDINGS, "Fracture", "Hernia"], PROMPTS["chexzero"])
    assert asked.probabilities.shape == (3, 6)
    again = objective.scores(model, images, [*FINDINGS, "Hernia", "Fracture"], PROMPTS["chexzero"])
    np.testing.assert_allclose(asked.probabilities[:, [4, 5]], again.probabilities[:, [5, 4]], rtol=1e-5)


def test_glorias_scores_in_loops(model):
    objective, images = make(Gloria, model), torch.randn(3, 1, 16, 16)
    found = objective.scores(model, [images[:2], images[2:]], FINDINGS, PROMPTS["ensemble"])
    positive, negative = PROMPTS["ensemble"].positive, PROMPTS["ensemble"].negative
    regions = objective.regions(model.image_features(images).regions)

    def local(i, text):
        features = model.text_features(model.tokenize([text]))
        return max(local_similarity(regions[i], objective.words(features.words)[0][features.is_word[0]]))

    def whole(i, templates, name):
        prompts = model.encode_text(model.tokenize([template.format(name) for template in templates]))
        mean = torch.nn.functional.normalize(prompts, dim=1).mean(0)
        return float(cosine_similarity(model.encode_image(images)[i], mean, dim=0))

    for i in range(3):
        for c, name in list(enumerate(FINDINGS))[1:]:
            name = name.lower()
            pro, con = (
                (whole(i, templates, name) + np.mean([local(i, t.format(name)) for t in templates])) / 2
                for templates in (positive, negative)
            )
            assert found.probabilities[i, c] == pytest.approx(1 / (1 + math.exp(con - pro)), abs=1e-5)


# ------------------------------------------------------------------ views


def test_views_differ_as_they_should():
    images = torch.rand(64, 1, 32, 32)
    generator = torch.Generator().manual_seed(0)
    same = Distortion((1.0, 1.0), contrast=0.0, flip=0.0, blur=0.0)
    ramp = torch.linspace(-1, 1, 32).expand(64, 1, 32, 32)
    # a whole crop changes its proportions at most: a ramp stays a ramp from left to right
    assert (same(ramp, generator).diff(dim=3) >= -1e-6).all()
    assert torch.equal(
        RADIOGRAPHS(images, torch.Generator().manual_seed(3)), RADIOGRAPHS(images, torch.Generator().manual_seed(3))
    )
    assert not torch.equal(RADIOGRAPHS(images, generator), RADIOGRAPHS(images, generator))
    mirrored = (PHOTOGRAPHS(ramp, generator)[:, 0, 16].diff(dim=1).sum(1) < 0).double().mean()
    assert 0.3 < mirrored < 0.7
    assert (RADIOGRAPHS(ramp, generator)[:, 0, 16].diff(dim=1).sum(1) > 0).all(), "never mirrored"
    rough = Distortion((1.0, 1.0), contrast=0.0, flip=0.0, blur=1.0)
    big = torch.randn(16, 2, 224, 224)
    assert rough(big, generator).diff(dim=3).square().mean() < 0.7 * same(big, generator).diff(dim=3).square().mean()
