"""Parts of a mixture that learning leaves as they are."""

import numpy as np
import pytest
import torch

from tmixture import Prior, StudentTMixture
from tmixture.frozen import PARTS

from . import naive
from .helpers import CLOSED_FORM, STRUCTURES, TIED, from_model, parameters

every_structure = pytest.mark.parametrize("structure", STRUCTURES)
every_part = pytest.mark.parametrize("part", PARTS)


def start_and_rows(structure, K=3, d=3, n=120):
    """A mixture with parameters, and rows of another one."""
    x, start = naive.heavy_tailed(K, d, n, structure)
    return start, torch.as_tensor(x)


@every_structure
@every_part
def test_a_frozen_part_stays_and_all_else_learns(structure, part):
    start, x = start_and_rows(structure)
    mixture = from_model(start, structure, frozen=part, learn_dof="component", max_iter=5, warm_start=False)
    before = parameters(mixture)
    after = parameters(mixture.fit(x))
    for name in PARTS:
        if name == part:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-12)
        else:
            assert np.abs(after[name] - before[name]).max() > 1e-3, name


@every_structure
def test_frozen_components_stay_among_others(structure):
    start, x = start_and_rows(structure)
    held = [True, False, False]
    parts = ("weights", "means", "dof") if structure in TIED else PARTS
    mixture = from_model(start, structure, frozen=dict.fromkeys(parts, held), learn_dof="shared", max_iter=20)
    before = parameters(mixture)
    for name, value in parameters(mixture.fit(x)).items():
        if name in parts:
            np.testing.assert_allclose(value[0], before[name][0], rtol=1e-12)
            assert np.abs(value[1] - before[name][1]).max() > 1e-3
    assert float(mixture.weights.sum()) == pytest.approx(1)
    assert float(mixture.dof[1]) == float(mixture.dof[2]) != float(mixture.dof[0])


@every_structure
@pytest.mark.parametrize("part", [*PARTS, ("means", "scales")])
@pytest.mark.parametrize("scale_update", ["px", "classic"])
def test_the_objective_rises(structure, part, scale_update):
    start, x = start_and_rows(structure)
    prior = Prior(weight_rows=1, mean_rows=2, scale_rows=3)
    mixture = from_model(
        start, structure, frozen=part, learn_dof="component", prior=prior, scale_update=scale_update, max_iter=40
    ).fit(x)
    assert np.diff(mixture.history_).min() >= -1e-9


@pytest.mark.parametrize("structure", CLOSED_FORM)
@pytest.mark.parametrize("part", ["weights", "means", "scales"])
def test_the_end_is_a_maximum_over_what_is_free(structure, part):
    start, x = start_and_rows(structure)
    mixture = from_model(start, structure, frozen=part, tol=1e-13, max_iter=3000, reg_covar="auto").fit(x)
    end, rng = parameters(mixture), np.random.default_rng(0)
    top = naive.log_likelihood(x.numpy(), naive.Model(**end))
    for _ in range(10):
        stretch = np.exp(1e-3 * rng.normal(size=(1 if structure in TIED else 3, 1, 1)))
        weights = end["weights"] * np.exp(1e-3 * rng.normal(size=3))
        moved = {
            "weights": weights / weights.sum(),
            "means": end["means"] + 1e-3 * rng.normal(size=end["means"].shape),
            "scales": stretch * end["scales"],
        }
        assert naive.log_likelihood(x.numpy(), naive.Model(**{**end, **moved, part: end[part]})) < top


def test_prototypes_hold_the_means_of_a_first_fit():
    _, x = start_and_rows("diag")
    prototypes = x[:3].clone()
    mixture = StudentTMixture(3, 3, init=prototypes, frozen="means", dtype=torch.float64).fit(x)
    assert torch.equal(mixture.means, prototypes)
    share = mixture(x)
    torch.testing.assert_close(mixture.weights, share.mean(0), rtol=1e-2, atol=1e-2)
    streamed = StudentTMixture(3, 3, init=prototypes, frozen="means", dtype=torch.float64)
    for batch in x.split(15):
        streamed.partial_fit(batch)
    torch.testing.assert_close(streamed.means, prototypes)


@every_structure
@every_part
def test_a_stream_leaves_frozen_parts(structure, part):
    start, x = start_and_rows(structure)
    mixture = from_model(start, structure, frozen=part)
    before = parameters(mixture)
    for batch in x.split(20):
        mixture.partial_fit(batch)
    after = parameters(mixture)
    np.testing.assert_allclose(after[part], before[part], rtol=1e-12)
    assert np.abs(after["means"] - before["means"]).max() > 1e-3 or part == "means"


def test_a_frozen_component_without_rows_is_not_started_anew():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    far = torch.tensor([[0.0, 0.0], [1e3, 1e3]])
    settings = dict(covariance_type="diag", frozen={"means": [False, True]})
    mixture = StudentTMixture.from_parameters(torch.ones(2), far, torch.eye(2).expand(2, -1, -1), **settings)
    assert torch.equal(mixture.fit(x).means[1], far[1])
    assert mixture.n_reseeded_ == 0


def test_masks_follow_the_components_and_a_file(tmp_path):
    start, x = start_and_rows("diag")
    mixture = from_model(start, "diag", frozen={"means": [True, False, False], "scales": torch.tensor([0, 1, 1]) > 0})
    mixture.reorder([2, 0, 1])
    assert mixture.frozen == {"means": [False, True, False], "scales": [True, False, True]}
    mixture.save(tmp_path / "mixture")
    again = StudentTMixture.load(tmp_path / "mixture").fit(x)
    np.testing.assert_allclose(parameters(again)["means"][1], start.means[0])
    assert again.marginal([0]).frozen == mixture.frozen


def test_a_part_may_be_frozen_after_a_fit():
    _, x = start_and_rows("diag")
    mixture = StudentTMixture(3, 3, generator=0, dtype=torch.float64).fit(x)
    before = mixture.means.clone()
    mixture.frozen = "means"
    assert torch.equal(mixture.fit(x + 1).means, before)
    with pytest.raises(ValueError, match="frozen must name parts"):
        mixture.frozen = "mean"
    assert mixture.frozen == {"means": [True] * 3}


def test_what_is_frozen_is_no_free_parameter():
    start, _ = start_and_rows("diag")
    free = from_model(start, "diag", learn_dof="component").n_free_parameters
    assert free == 2 + 9 + 9 + 3
    assert from_model(start, "diag", frozen="means").n_free_parameters == 2 + 9
    assert from_model(start, "tied", frozen=("scales", "weights")).n_free_parameters == 9
    held = {part: [True, False, False] for part in PARTS}
    assert from_model(start, "full", frozen=held, learn_dof="shared").n_free_parameters == 1 + 6 + 12 + 1


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        ("mean", "frozen must name parts among 'weights', 'means', 'scales', 'dof', got 'mean'"),
        ([], "frozen must name parts"),
        ({"means": [True]}, r"frozen\['means'\] must be a bool or a mask of 3 components"),
        ({"means": [1, 0, 1]}, "must be a bool or a mask"),
    ],
)
def test_frozen_parts_that_do_not_fit_are_refused(frozen, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(3, 2, frozen=frozen)


def test_what_has_no_value_cannot_be_frozen():
    x = torch.randn(50, 2)
    with pytest.raises(ValueError, match="frozen names 'weights', 'scales', of which this mixture has none yet"):
        StudentTMixture(3, 2, frozen=("weights", "scales", "dof")).fit(x)
    with pytest.raises(ValueError, match="frozen names 'means'"):
        StudentTMixture(3, 2, init=x[:3], frozen="means").fit(x, responsibilities=torch.arange(50) % 3)
    with pytest.raises(ValueError, match="must be all or none"):
        StudentTMixture(3, 2, covariance_type="tied", frozen={"scales": [True, False, True]})
