"""The contrastive loss by co-membership against naive loops, SupCon, and what a cluster loss makes of it."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, CoMembershipLoss

from .helpers import clustered, fitted, leaf


def naive(x, p, refs, q, temperature, *, apart):
    """The mean over anchors, term by term."""
    unit, ref_unit = (torch.nn.functional.normalize(part, dim=1) for part in (x, refs))
    terms = []
    for i in range(len(x)):
        others = [j for j in range(len(refs)) if apart or j != i]
        similarity = [float(unit[i] @ ref_unit[j]) / temperature for j in others]
        norm = math.log(sum(math.exp(s) for s in similarity))
        together = [float(p[i] @ q[j]) for j in others]
        if sum(together) > 0:
            terms.append(-sum(t / sum(together) * (s - norm) for t, s in zip(together, similarity)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("apart", [False, True])
def test_it_is_the_sum_over_pairs(apart):
    generator = torch.Generator().manual_seed(0)
    x, refs = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    p, q = (torch.rand(7, 3, generator=generator).softmax(1) for _ in range(2))
    refs, q = (refs, q) if apart else (x, p)
    loss = CoMembershipLoss(temperature=0.3)
    value = loss.reducer(loss.soft_terms(x, p, refs, q, apart=apart), x, None)
    assert float(value) == pytest.approx(naive(x, p, refs, q, 0.3, apart=apart), rel=1e-5)


def test_with_labels_it_is_supcon():
    x, labels = clustered(20, spread=1.5)
    one, other = leaf(x), leaf(x)
    value, expected = CoMembershipLoss(temperature=0.2)(one, labels), SupConLoss(0.2)(other, labels)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_a_row_that_belongs_to_nobody_else_has_no_term():
    x = torch.eye(3)
    loss = CoMembershipLoss()
    terms = loss.soft_terms(x, torch.eye(3), x, torch.eye(3), apart=False)
    assert terms["loss"]["losses"] == 0
    labels = torch.tensor([0, 0, 1])
    assert loss.compute_loss(x, labels, None, x, labels)["loss"]["indices"].tolist() == [0, 1]


def test_a_cluster_loss_gives_it_the_flattened_posterior():
    mixture, x = fitted(), clustered(16, spread=1.5)[0]
    loss = ClusterLoss(mixture, CoMembershipLoss(posterior_temperature=3.0), refit="external")
    p = (mixture.log_joint(torch.nn.functional.normalize(x, dim=1)) / 3).softmax(1)
    assert float(loss(x)) == pytest.approx(naive(x, p, x, p, 0.2, apart=False), rel=1e-4)
    known = torch.full((16,), -1)
    known[:4] = torch.tensor([0, 1, 2, 3])
    p[:4] = torch.eye(4)
    assert float(loss(x, known)) == pytest.approx(naive(x, p, x, p, 0.2, apart=False), rel=1e-4)


def test_a_memory_and_paired_references():
    mixture, x, captions = fitted(), clustered(8, spread=1.5)[0], clustered(8, spread=1.5, seed=5)[0]
    loss = ClusterLoss(mixture, CoMembershipLoss(posterior_temperature=3.0), refit="external", memory_size=8)
    unit = torch.nn.functional.normalize

    def posterior(rows):
        return (mixture.log_joint(unit(rows, dim=1)) / 3).softmax(1)

    p = posterior(x)
    assert float(loss(x, ref_emb=captions)) == pytest.approx(naive(x, p, captions, p, 0.2, apart=True), rel=1e-4)
    both = torch.cat([captions, x])
    expected = naive(captions, posterior(captions), both, posterior(both), 0.2, apart=False)
    assert float(loss(captions)) == pytest.approx(expected, rel=1e-4)


def test_a_temperature_flattens_the_posterior():
    joint = torch.randn(4, 3)
    torch.testing.assert_close(CoMembershipLoss().memberships(joint), joint.softmax(1))
    torch.testing.assert_close(CoMembershipLoss(posterior_temperature=8).memberships(joint), (joint / 8).softmax(1))


@pytest.mark.parametrize("name", ["temperature", "posterior_temperature"])
def test_temperatures_are_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        CoMembershipLoss(**{name: 0})


def test_it_is_seen_in_a_printed_network():
    assert "temperature=0.2" in repr(ClusterLoss(StudentTMixture(3, 4), CoMembershipLoss()))
