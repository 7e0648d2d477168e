"""The reservoir sample: uniform, in proportion to weights, and blind to the chunking. And draws from the mixture."""

import numpy as np
import pytest
import torch
from scipy import stats

from tmixture import reservoir, sampling
from tmixture.data.chunks import Chunk

from . import naive
from .helpers import STRUCTURES, from_model

# A correct sampler fails one of these tests once in 10⁵ seeds; the seeds are fixed.
SAFE = 1e-5


def chunked(x, sizes, weight=None):
    parts = x.split(sizes)
    weights = [None] * len(parts) if weight is None else weight.split(sizes)
    return [Chunk(part, w) for part, w in zip(parts, weights)]


def index_column(n):
    return torch.arange(n, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("size", [3, 10, 39])
def test_every_row_is_equally_likely_and_drawn_once(size):
    generator = torch.Generator().manual_seed(0)
    counts, draws = np.zeros(40), 1500
    for _ in range(draws):
        chunks = chunked(index_column(40), [7, 13, 1, 19])
        sample = reservoir.draw_sample(chunks, size, torch.float32, generator)
        rows = sample.x[:, 0].long()
        assert len(rows) == size
        assert (rows.diff() > 0).all()  # in their order, none twice
        assert sample.rows == 40
        counts[rows.numpy()] += 1
    share = size / 40
    z = (counts - draws * share) / np.sqrt(draws * share * (1 - share))
    # The counts of a fixed-size draw sum to a constant: (n−1)/n·Σz² is χ² with n−1 degrees of freedom.
    assert SAFE < stats.chi2(39).cdf((z**2).sum() * 39 / 40) < 1 - SAFE


def test_rows_are_drawn_in_proportion_to_their_weights():
    generator = torch.Generator().manual_seed(1)
    weight = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.0, 0.25], dtype=torch.float64)
    counts, draws = np.zeros(6), 4000
    for _ in range(draws):
        sample = reservoir.draw_sample(chunked(index_column(6), [2, 3, 1], weight), 1, torch.float32, generator)
        assert sample.weight.tolist() == [1.0]
        assert sample.rows == 4
        counts[int(sample.x)] += 1
    assert counts[weight == 0].sum() == 0
    positive = (weight > 0).numpy()
    expected = draws * (weight / weight.sum()).numpy()[positive]
    assert stats.chisquare(counts[positive], expected).pvalue > SAFE


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [33, 33, 33, 1], [99, 1]])
def test_the_sample_does_not_depend_on_the_chunking(sizes):
    weight = torch.as_tensor(np.random.default_rng(0).integers(0, 3, 100)).double()
    samples = [
        reservoir.draw_sample(
            chunked(index_column(100), s, weight), 12, torch.float32, torch.Generator().manual_seed(5)
        )
        for s in (sizes, [50, 50])
    ]
    assert samples[0].x.tolist() == samples[1].x.tolist()


def test_all_rows_with_weight_are_kept_where_they_fit():
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5], dtype=torch.float64)
    sample = reservoir.draw_sample(chunked(index_column(4), [3, 1], weight), 10, torch.float64, None)
    assert sample.x[:, 0].tolist() == [0, 2, 3]
    assert sample.weight.tolist() == [1.0, 3.0, 0.5]


@pytest.mark.parametrize("count", [1, 5, 50])
def test_stray_rows_are_left_out(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator)
    x[:count] = 1e8 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    x[:count] *= torch.linspace(1, 1000, count)[:, None]
    weight = torch.arange(500.0)
    cleaned = sampling.without_stray_rows(sampling.Sample(x, weight, 500), at_least=2)
    assert cleaned.x.tolist() == x[count:].tolist()
    assert cleaned.weight.tolist() == weight[count:].tolist()
    assert cleaned.rows == 500


@pytest.mark.parametrize("case", ["many", "near", "group", "needed", "constant"])
def test_rows_that_may_be_structure_are_kept(case):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    if case == "many":
        x[:51] *= 1e8 * torch.arange(1.0, 52.0)[:, None]  # more than 10 %
    if case == "near":
        x[0] = 50.0
    if case == "group":
        x[:3] += 1e4  # however rare
    if case == "needed":
        x[0] = 1e8
    if case == "constant":
        x[1:] = 0.0
    sample = sampling.Sample(x, torch.ones(500), 500)
    kept = sampling.without_stray_rows(sample, at_least=500 if case == "needed" else 2)
    assert len(kept.x) == 500


def test_variances_are_those_of_numpy_where_nothing_lies_far_away():
    rng = np.random.default_rng(0)
    x, weight = 1e4 + rng.normal(size=(50, 3)), rng.integers(1, 4, 50)
    sample = sampling.Sample(torch.as_tensor(x), torch.as_tensor(weight, dtype=torch.float64), 50)
    np.testing.assert_allclose(sampling.spread(sample).variance, np.repeat(x, weight, axis=0).var(0), rtol=1e-9)


def test_variances_of_features_are_not_those_of_their_outliers():
    """Saturated values count as ten times the usual distance, also where most of a feature is zero, in any units."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5000, 4)) * [1.0, 1.0, 1e6, 1e-6]
    x[rng.random(5000) < 0.9, 1] = 0
    clean = torch.as_tensor(x.var(0))
    x[:100] = 65504 * np.array([1.0, 1.0, 1e6, 1e-6])
    found = sampling.spread(sampling.Sample(torch.as_tensor(x), torch.ones(5000, dtype=torch.float64), 5000)).variance
    assert ((found / clean > 0.5) & (found / clean < 20)).all(), found / clean
    constant = torch.full((50, 1), 7.0)
    assert sampling.spread(sampling.Sample(constant, torch.ones(50), 50)).variance.tolist() == [0.0]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_from_the_mixture_have_its_distribution(structure):
    """δ/d of a t component is F-distributed, δ of a Gaussian one χ²; whitened directions are uniform."""
    dof = (3.0, float("inf"))
    model = naive.random_model(2, 3, structure, dof=dof)
    mixture = from_model(model, structure)
    x, component = mixture.sample(4000, generator=torch.Generator().manual_seed(0))
    assert stats.binomtest(int((component == 0).sum()), 4000, model.weights[0]).pvalue > SAFE
    for k, law in enumerate((stats.f(3, 3.0, scale=3), stats.chi2(3))):
        rows = x[component == k].numpy()
        whitened = np.linalg.solve(np.linalg.cholesky(model.scales[k]), (rows - model.means[k]).T).T
        delta = (whitened**2).sum(1)
        assert stats.kstest(delta, law.cdf).pvalue > SAFE
        cosine = whitened / np.sqrt(delta)[:, None]  # each coordinate of a uniform direction in 3-d is uniform
        for column in cosine.T:
            assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > SAFE
    again, _ = mixture.sample(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, x)
