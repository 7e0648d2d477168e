"""Labels that are known stay: in the loss, in the memory, in every fit."""

import copy

import pytest
import torch
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss

from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, ClusterTripletLoss
from tmixture.losses.assignment import Assignment

from .helpers import clustered, fitted

normalize = torch.nn.functional.normalize


def batch(seed=0, every=3):
    """Rows (24, 6), their classes, and these with most of them unknown."""
    x, labels = clustered(24, seed=seed, spread=0.7)
    return x, labels, torch.where(torch.arange(24) % every == 0, labels, -1)


def test_labels_that_are_all_unknown_change_nothing():
    one, other = (ClusterTripletLoss(n_components=4, embedding_size=6, refit=2) for _ in range(2))
    for seed in range(8):
        x, labels, _ = batch(seed)
        torch.testing.assert_close(one(x), other(x, torch.full_like(labels, -1)), rtol=0, atol=0)
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_labels_that_are_all_known_are_the_wrapped_loss():
    x, labels, _ = batch()
    loss = ClusterLoss(loss=ContrastiveLoss(), n_components=4, embedding_size=6)
    torch.testing.assert_close(loss(x, labels), ContrastiveLoss()(x, labels))
    assert len(loss.memory) == 0


def test_known_labels_replace_those_of_the_mixture():
    x, _, known = batch()
    loss = ClusterLoss(fitted(), TripletMarginLoss(0.3), refit="external")
    wrong = torch.where(known >= 0, (known + 1) % 4, -1)
    said = torch.where(wrong >= 0, wrong, loss.predict(x))
    torch.testing.assert_close(loss(x, wrong), TripletMarginLoss(0.3)(x, said))
    assert loss.statistics["confidence"] > float(loss.mixture(normalize(x, dim=1)).amax(1).mean())


def test_memory_and_refits_keep_them():
    loss = ClusterTripletLoss(n_components=4, embedding_size=6, refit=2, window_size=96, memory_size=48)
    rows, labels = [], []
    for seed in range(6):
        x, _, known = batch(seed)
        loss(x, known)
        rows, labels = [*rows, x], [*labels, known]
    window, known = normalize(torch.cat(rows[-4:]), dim=1), torch.cat(labels[-4:])
    torch.testing.assert_close(loss.memory.known, known)
    expected = StudentTMixture(4, 6, anchor_rows=100, generator=0).fit(window, labels=known)
    torch.testing.assert_close(loss.mixture.means, expected.means, rtol=1e-4, atol=1e-4)
    for k in range(4):  # as if the class had been told
        nearest = torch.cdist(window[known == k].mean(0)[None], loss.mixture.means).argmin()
        assert int(nearest) == k
    again = ClusterTripletLoss(n_components=4, embedding_size=6, refit=2, window_size=96, memory_size=48)
    again.load_state_dict(loss.state_dict())
    x, _, known = batch(7)
    torch.testing.assert_close(again(x, known), loss(x, known), rtol=0, atol=0)


def test_components_of_no_class_have_labels_of_their_own():
    mixture = fitted()
    mixture.component_labels = [1, 0, -1, -1]
    x, _, _ = batch()
    assigned = Assignment.of(mixture, normalize(x, dim=1), None)
    expected = torch.tensor([1, 0, 6, 7])[mixture.predict(normalize(x, dim=1))]
    assert (assigned.labels == expected).all()


def test_shuffled_labels_are_the_same_in_another_order():
    x, _, known = batch()
    torch.manual_seed(0)
    assigned = Assignment.of(fitted(), normalize(x, dim=1), known)
    other = assigned.shuffled()
    assert (assigned.labels != other.labels).any()
    assert sorted(assigned.labels.tolist()) == sorted(other.labels.tolist())
    arm, control = (
        ClusterTripletLoss(fitted(), refit="external", miner=None, shuffle=shuffle) for shuffle in (False, True)
    )
    assert float(control(x)) != float(arm(x))
    assert control.statistics["perplexity"] == pytest.approx(arm.statistics["perplexity"])


@pytest.mark.parametrize("refit", ["streaming", 3])
def test_every_policy_takes_them(refit):
    loss = ClusterTripletLoss(n_components=4, embedding_size=6, refit=refit)
    for seed in range(6):
        x, _, known = batch(seed)
        value = loss(x, known)
    assert value > 0


def test_labels_that_do_not_fit_leave_everything_as_it_was():
    loss = ClusterTripletLoss(n_components=4, embedding_size=6)
    x, _, known = batch()
    loss(x, known)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(ValueError, match="class of the mixture's 4 components, got 9"):
        loss(x, torch.where(known >= 0, 9, -1))
    with pytest.raises(ValueError, match="labels have 3 entries for 24 embeddings"):
        loss(x, torch.tensor([-1, 0, 0]))
    with pytest.raises(ValueError, match="must be integers, got"):
        loss(x, known.float())
    with pytest.raises(ValueError, match="must be a tensor"):
        loss(x, known.tolist())
    torch.testing.assert_close(loss.state_dict(), before, rtol=0, atol=0)
