"""Rows of known class keep it, and means are held where they are known to belong."""

import numpy as np
import pytest
import torch

from tmixture import StudentTMixture

from .helpers import CLOSED_FORM, STRUCTURES, assert_same_parameters, of

INF = float("inf")
every_structure = pytest.mark.parametrize("structure", STRUCTURES)


def overlapping(n=300, d=3, K=3, seed=0):
    """Rows (n, d) of clusters that overlap, and their classes (n,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    labels = torch.arange(n) % K
    return centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64), labels


def partly(labels, every=10):
    """The labels with most of them unknown."""
    return torch.where(torch.arange(len(labels)) % every < 3, labels, -1)


def mixture_of(structure, K=3, d=3, **settings):
    settings = {"generator": 0, "dtype": torch.float64, "max_iter": 200, **of(structure), **settings}
    return StudentTMixture(K, d, **settings)


@pytest.mark.parametrize("structure", CLOSED_FORM)
def test_with_every_row_labelled_a_gaussian_fit_is_the_moments_of_the_classes(structure):
    x, labels = overlapping()
    mixture = mixture_of(structure, dof=INF, reg_covar=0).fit(x, labels=labels)
    parts = [x[labels == k] for k in range(3)]
    covariances = torch.stack([part.T.cov(correction=0) for part in parts])
    expected = {
        "full": covariances,
        "tied": covariances.mean(0).expand(3, -1, -1),
        "tied_diag": covariances.mean(0).diagonal().diag().expand(3, -1, -1),
        "tied_spherical": covariances.diagonal(dim1=1, dim2=2).mean() * torch.eye(3).double().expand(3, -1, -1),
        "diag": torch.diag_embed(covariances.diagonal(dim1=1, dim2=2)),
        "spherical": covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(3),
    }[structure]
    torch.testing.assert_close(mixture.means, torch.stack([part.mean(0) for part in parts]))
    torch.testing.assert_close(mixture.scales, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixture.weights, torch.full((3,), 1 / 3, dtype=torch.float64))


@pytest.mark.parametrize("structure", ["full", "diag", "spherical"])
def test_with_every_row_labelled_each_component_is_a_fit_to_its_class(structure):
    x, labels = overlapping()
    settings = dict(tol=1e-10, max_iter=500, reg_covar=0)
    mixture = mixture_of(structure, **settings).fit(x, labels=labels)
    for k in range(3):
        alone = mixture_of(structure, K=1, **settings).fit(x[labels == k])
        torch.testing.assert_close(mixture.means[k], alone.means[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixture.scales[k], alone.scales[0], rtol=1e-3, atol=1e-3)


@every_structure
def test_with_no_row_labelled_the_fit_is_that_without_labels(structure):
    x, labels = overlapping()
    mixture = mixture_of(structure).fit(x, labels=torch.full_like(labels, -1))
    assert_same_parameters(mixture, mixture_of(structure).fit(x), rtol=1e-12)


@every_structure
@pytest.mark.parametrize("dof", [4.0, INF])
def test_an_iteration_is_that_of_fixed_responsibilities(structure, dof):
    """Known rows one-hot, all others by Bayes' rule: the M-step from these responsibilities is the next step."""
    x, labels = overlapping()
    known = partly(labels, every=4)
    start = mixture_of(structure, dof=dof, max_iter=2).fit(x)
    one = mixture_of(structure, dof=dof, max_iter=1, warm_start=True)
    one.load_state_dict(start.state_dict())
    one.fit(x, labels=known)
    r = torch.where((known >= 0)[:, None], torch.nn.functional.one_hot(known.clamp(min=0), 3), start(x))
    w = r * start.outlier_weights(x)
    torch.testing.assert_close(one.weights, r.mean(0))
    torch.testing.assert_close(one.means, w.T @ x / w.sum(0)[:, None], rtol=1e-6, atol=1e-6)
    joint = start.log_joint(x)
    expected = torch.where(known >= 0, joint.gather(1, known.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1)).mean()
    assert one.history_[0] == pytest.approx(float(expected), abs=1e-4)


@every_structure
@pytest.mark.parametrize(
    ("anchor_rows", "learn_dof", "scale_update"),
    [(0.0, False, "px"), (40.0, "component", "px"), (40.0, "shared", "classic")],
)
def test_the_objective_rises(structure, anchor_rows, learn_dof, scale_update):
    x, labels = overlapping(seed=3)
    settings = dict(anchor_rows=anchor_rows, learn_dof=learn_dof, scale_update=scale_update, tol=0.0, max_iter=40)
    mixture = mixture_of(structure, **settings).fit(x, labels=partly(labels, every=30))
    assert mixture.n_reseeded_ == 0
    assert np.diff(mixture.history_).min() >= -1e-9


def test_one_gaussian_with_an_anchor_is_the_textbook_posterior():
    """μ = (n·x̄ + a·m)/(n + a) and n·Σ = S + a·(μ − m)(μ − m)ᵀ."""
    x, _ = overlapping(n=50, K=1)
    m, a = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64), 20
    mixture = mixture_of("full", K=1, dof=INF, init=m, anchor_rows=a, reg_covar=0, tol=1e-14).fit(x)
    mean = (x.sum(0) + a * m[0]) / (50 + a)
    scatter = (x - mean).T @ (x - mean) + a * torch.outer(mean - m[0], mean - m[0])
    torch.testing.assert_close(mixture.means[0], mean)
    torch.testing.assert_close(mixture.scales[0], scatter / 50, rtol=1e-6, atol=1e-6)


@every_structure
def test_an_anchor_of_many_rows_holds_the_mean(structure):
    x, labels = overlapping()
    known = partly(labels)
    mixture = mixture_of(structure, anchor_rows=1e9).fit(x, labels=known)
    expected = torch.stack([x[known == k].mean(0) for k in range(3)])
    torch.testing.assert_close(mixture.means, expected, rtol=1e-4, atol=1e-4)


@every_structure
def test_the_chunking_does_not_matter(structure):
    x, labels = overlapping()
    known = partly(labels)
    fits = [
        mixture_of(structure, chunk_size=size, anchor_rows=5, max_iter=10).fit(x, labels=known) for size in (7, 1000)
    ]
    assert_same_parameters(*fits, rtol=1e-6, atol=1e-6)


def test_a_mask_says_the_same_as_labels():
    x, labels = overlapping()
    known = partly(labels)
    mask = (known[:, None] < 0) | (known[:, None] == torch.arange(3))
    assert_same_parameters(mixture_of("diag").fit(x, labels=known), mixture_of("diag").fit(x, labels=mask), rtol=1e-12)


@every_structure
def test_a_batch_of_a_stream_keeps_its_labels(structure):
    """With a step size of one, a batch is an iteration of EM on it alone."""
    x, labels = overlapping()
    known = partly(labels)
    stream, full = (mixture_of(structure, step_size=1.0, max_iter=3).fit(x) for _ in range(2))
    stream.partial_fit(x, labels=known)
    full.max_iter, full.warm_start = 1, True
    full.fit(x, labels=known)
    torch.testing.assert_close(stream.weights, full.weights, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stream.means, full.means, rtol=1e-6, atol=1e-6)


def test_several_components_of_a_class():
    """Two far-apart halves of a class, of which one row each is known, and a class that nobody knows."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    part = torch.arange(400) % 4
    x = centres[part] + torch.randn(400, 2, generator=generator)
    labels = torch.full((400,), -1)
    labels[:40] = torch.tensor([0, 0, 1, -1])[part[:40]]
    mixture = StudentTMixture(4, 2, component_labels=[0, 0, 1, -1], generator=0).fit(x, labels=labels)
    probability = mixture.class_probabilities(x)
    assert probability.shape == (400, 2)
    assert probability[part < 2, 0].mean() > 0.99
    assert probability[part == 2, 1].mean() > 0.99
    assert probability[part == 3].sum(1).mean() < 0.01
    assert sorted(mixture.predict(centres).tolist()) == [0, 1, 2, 3]


def test_labels_that_nothing_else_says_hold():
    """One cloud of rows, in which the known classes are all there is to tell its halves apart."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 2
    mixture = StudentTMixture(2, 2, generator=0).fit(x, labels=labels)
    torch.testing.assert_close(mixture.weights, torch.full((2,), 0.5))
    torch.testing.assert_close(mixture.means[0], mixture.means[1], atol=0.5, rtol=0)


def test_settings_are_saved(tmp_path):
    mixture = StudentTMixture(3, 2, component_labels=torch.tensor([0, 1, 1]), anchor_rows=5).fit(torch.randn(50, 2))
    mixture.save(tmp_path / "mixture")
    again = StudentTMixture.load(tmp_path / "mixture")
    assert again.component_labels == [0, 1, 1]
    assert again.anchor_rows == 5
    assert mixture.reorder([2, 0, 1]).component_labels == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(9), "integers"),
        (torch.zeros(9, 2, dtype=torch.bool), "row 0 has none"),
        (torch.zeros(8, dtype=torch.long), "labels has 8 entries, but the data has 9 rows"),
        (torch.tensor([0, 1, 2, -1, 0, 0, 0, 0, 0]), "row 2 has 2, which none has"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(2, 2).fit(torch.randn(9, 2), labels=labels)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="component_labels"):
        StudentTMixture(2, 2, component_labels=[0])
    with pytest.raises(ValueError, match="component_labels"):
        StudentTMixture(2, 2, component_labels=[-1, -1])
    with pytest.raises(ValueError, match="max_candidates"):
        StudentTMixture(2, 2, max_candidates=1).fit(torch.randn(9, 2), labels=torch.zeros(9, dtype=torch.long))
