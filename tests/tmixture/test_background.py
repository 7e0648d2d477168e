"""A background for rows that belong nowhere."""

import pytest
import torch

from tmixture import StudentTMixture, scales
from tmixture.losses import ClusterTripletLoss

from .helpers import STRUCTURES, assert_same_parameters, of

FREE = [structure for structure in STRUCTURES if scales.STRUCTURES[structure].per_component]
every_structure = pytest.mark.parametrize("structure", FREE)


def blobs_and_noise(n=400, n_noise=100, seed=0):
    """Two narrow clusters in three dimensions, noise over a cube, and which rows are noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[4.0, 4.0, 4.0], [-4.0, -4.0, 4.0]], dtype=torch.float64)
    x = centres[torch.arange(n) % 2] + 0.3 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    noise = 16 * torch.rand(n_noise, 3, generator=generator, dtype=torch.float64) - 8
    return torch.cat([x, noise]), torch.arange(n + n_noise) >= n


def mixture_of(structure, **settings):
    settings = {"generator": 0, "dtype": torch.float64, **of(structure), **settings}
    return StudentTMixture(3, 3, background=True, **settings)


@every_structure
@pytest.mark.parametrize("dof", [4.0, 30.0, float("inf")])
def test_it_takes_the_noise(structure, dof):
    x, is_noise = blobs_and_noise()
    mixture = mixture_of(structure, dof=dof).fit(x)
    found = mixture.predict(x) == -1
    assert (found & is_noise).sum() >= 0.85 * is_noise.sum()
    assert (found & ~is_noise).sum() <= 0.05 * (~is_noise).sum()
    assert float(mixture.weights[-1]) == pytest.approx(0.2, abs=0.05)
    assert mixture.predict(x).unique().tolist() == [-1, 0, 1]


@pytest.mark.parametrize("dof", [4.0, float("inf")])
@pytest.mark.parametrize("reach", [24.0, 40.0, 200.0])
def test_noise_of_any_reach_leaves_the_clusters_alone(dof, reach):
    """Neither takes a cluster's place: k-means puts a centre into noise that reaches far."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(600) % 3
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    x = torch.cat(
        [centres[groups] + torch.randn(600, 2, generator=generator), reach * torch.rand(100, 2) - 0.4 * reach]
    )
    mixture = StudentTMixture(4, 2, dof=dof, background=True, generator=0).fit(x)
    assert torch.cdist(centres, mixture.means[:3]).amin(1).max() < 0.3
    assert (mixture.predict(x)[600:] == -1).double().mean() > 0.6


@every_structure
def test_it_lies_where_the_lonely_rows_do(structure):
    x, is_noise = blobs_and_noise()
    mixture = mixture_of(structure).fit(x)
    noise = x[is_noise]
    variance, expected = mixture.scales[-1].diagonal(), noise.var(0, correction=0)
    torch.testing.assert_close(mixture.means[-1], noise.mean(0), rtol=0, atol=0.3)
    torch.testing.assert_close(variance.mean(), expected.mean(), rtol=0.1, atol=0)


@every_structure
def test_without_lonely_rows_it_is_as_wide_as_the_data(structure):
    x = torch.cat([torch.rand(300, 3, generator=torch.Generator().manual_seed(0)).double() + c for c in (0, 5)])
    mixture = mixture_of(structure).fit(x)
    torch.testing.assert_close(mixture.means[-1], x.mean(0), rtol=1e-6, atol=1e-6)
    variance, expected = mixture.scales[-1].diagonal(), x.var(0, correction=0)
    torch.testing.assert_close(variance.mean(), expected.mean(), rtol=1e-4, atol=0)
    assert mixture.weights[-1] < 0.01


@every_structure
def test_its_probability_is_its_share_by_bayes_rule(structure):
    x, _ = blobs_and_noise()
    mixture = mixture_of(structure).fit(x)
    joint = mixture.weights * mixture.component_log_prob(x).exp()
    torch.testing.assert_close(mixture.outlier_probability(x), joint[:, -1] / joint.sum(1))
    torch.testing.assert_close(mixture(x)[:, -1], mixture.outlier_probability(x))


@every_structure
def test_chunks_and_streams_have_it_too(structure):
    x, is_noise = blobs_and_noise()
    x, is_noise = x[(order := torch.randperm(len(x), generator=torch.Generator().manual_seed(1)))], is_noise[order]
    whole, parts = (mixture_of(structure, chunk_size=size, max_iter=15).fit(x) for size in (1000, 33))
    assert_same_parameters(whole, parts, rtol=1e-6)
    streamed = mixture_of(structure)
    for batch in x.split(50):
        streamed.partial_fit(batch)
    found = streamed.predict(x) == -1
    assert (found & is_noise).sum() >= 0.7 * is_noise.sum()
    assert (found & ~is_noise).sum() <= 0.1 * (~is_noise).sum()


def test_it_is_of_no_class():
    x, is_noise = blobs_and_noise()
    known = torch.where(torch.arange(len(x)) % 10 == 0, torch.arange(len(x)) % 2, -1).masked_fill(is_noise, -1)
    mixture = mixture_of("diag").fit(x, labels=known)
    assert mixture.classes.tolist() == [0, 1, -1]
    assert mixture.class_probabilities(x).shape == (len(x), 2)
    own = mixture.predict(x)[:400]
    assert (own == torch.arange(400) % 2).double().mean() > 0.95


def test_given_means_are_those_of_the_others():
    x, _ = blobs_and_noise()
    centres = torch.tensor([[4.0, 4.0, 4.0], [-4.0, -4.0, 4.0]])
    mixture = mixture_of("diag", init=centres).fit(x)
    torch.testing.assert_close(mixture.means[:2].float(), centres, atol=0.2, rtol=0)
    given = mixture_of("diag").fit(x, responsibilities=torch.arange(len(x)) % 2)
    assert torch.equal(given.means[-1], mixture.means[-1])


def test_it_is_saved_goes_on_and_stays_the_last(tmp_path):
    x, _ = blobs_and_noise()
    mixture = mixture_of("diag").fit(x)
    mixture.save(tmp_path / "mixture")
    again = StudentTMixture.load(tmp_path / "mixture")
    assert torch.equal(again.predict(x), mixture.predict(x))
    again.warm_start = True
    assert torch.equal(again.fit(x + 1).means[-1], mixture.means[-1])
    assert again.reorder([1, 0, 2]).predict(x).unique().tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match="components must leave the background the last one"):
        again.reorder([2, 0, 1])
    assert again.n_free_parameters == 2 + 2 * 3 + 2 * 3
    assert again.marginal([0, 1]).predict(x[:, :2]).min() == -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(n_components=1, n_features=3), "background=True needs another component"),
        (dict(n_components=3, n_features=3, covariance_type="tied"), "a structure with a scale for each"),
        (dict(n_components=2, n_features=3, component_labels=[0, 1]), "must end with −1, as the background"),
        (dict(n_components=3, n_features=3, init=torch.zeros(3, 3)), r"means of shape \(2, 3\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(**settings, background=True)


def test_what_has_no_background_has_no_probability_of_it():
    x, _ = blobs_and_noise()
    with pytest.raises(ValueError, match="needs a mixture with background=True; see also `tail"):
        StudentTMixture(2, 3, generator=0).fit(x).outlier_probability(x)
    with pytest.raises(ValueError, match="mixture must have no background"):
        ClusterTripletLoss(mixture_of("diag"))
