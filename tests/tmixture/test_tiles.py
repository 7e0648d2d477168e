"""Tiles hold every row once, and what is computed in them is what the exact densities say."""

import pytest
import torch

from tmixture import tiles
from tmixture.density import Density, negligible
from tmixture.parameters import Parameters
from tmixture.scales import pairs
from tmixture.scales.diag import DiagonalScale
from tmixture.scales.spherical import SphericalScale

SCALES = [DiagonalScale, SphericalScale]


@pytest.mark.parametrize(("n", "n_groups"), [(0, 3), (1, 1), (31, 1), (32, 1), (33, 1), (500, 7), (500, 900)])
def test_every_entry_is_in_one_tile_of_its_group(n, n_groups):
    groups = torch.randint(n_groups, (n,), generator=torch.Generator().manual_seed(0))
    entries, filled, owner = pairs.tiles(groups, n_groups)
    assert torch.equal(entries[filled].sort().values, torch.arange(n))
    assert (groups[entries] == owner[:, None]).all()  # what fills a tile up is of the same group
    assert len(owner) == sum(-(-int((groups == group).sum()) // pairs.TILE_ROWS) for group in range(n_groups))


def mixture(scale, K, d, spread, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(K, d, generator=draw, dtype=torch.float64)
    deviation = spread * torch.exp(torch.randn(K, d, generator=draw, dtype=torch.float64))
    scales = DiagonalScale(1 / deviation) if scale is DiagonalScale else SphericalScale(1 / deviation[:, 0])
    weights = torch.rand(K, generator=draw, dtype=torch.float64)
    dof = torch.tensor([3.0, 30.0, float("inf")], dtype=torch.float64).repeat(K)[:K]
    parameters = Parameters(weights / weights.sum(), means, scales, dof)
    home = torch.arange(K)
    x = means[:, None] + deviation[:, None] * torch.randn(K, 5, d, generator=draw, dtype=torch.float64)
    return Density(parameters, dtype), x, home


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("spread", [1.0, 1e-2])
def test_distances_and_densities_are_those_of_the_candidates(scale, spread):
    density, x, home = mixture(scale, K=12, d=6, spread=spread)
    candidates = torch.stack([torch.randperm(12)[:4] for _ in home])
    distances, joint = tiles.relevant(density, x, home, candidates)
    expected = density.mahalanobis(density.features(x.flatten(0, 1)))
    chosen = candidates[:, None].expand(-1, 5, -1).flatten(0, 1)
    torch.testing.assert_close(distances.flatten(0, 1), expected.gather(1, chosen), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(joint.flatten(0, 1), density.joint(expected).gather(1, chosen), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_far_candidates_keep_their_digits_in_float32_where_they_matter(scale):
    # Components a thousand times smaller than their distances: expanded squares keep no digit of their own rows.
    single, x, home = mixture(scale, K=12, d=6, spread=1e-3, dtype=torch.float32)
    double = mixture(scale, K=12, d=6, spread=1e-3)[0]
    wrong_home = home.roll(1)  # none of the rows is near the point about which its squares are expanded
    candidates = torch.arange(12).expand(12, -1)
    joint = tiles.relevant(single, x, wrong_home, candidates)[1].double()
    expected = double.joint(double.mahalanobis(double.features(x.flatten(0, 1)))).view(joint.shape)
    matters = expected.log_softmax(2).exp() > negligible(torch.float32)
    torch.testing.assert_close(joint[matters], expected[matters], rtol=1e-4, atol=1e-3)
    assert (joint.argmax(2) == expected.argmax(2)).all()


@pytest.mark.parametrize("scale", SCALES)
def test_rows_as_far_away_as_is_allowed_leave_everything_finite(scale):
    density, x, home = mixture(scale, K=12, d=6, spread=1e-4, dtype=torch.float32)
    far = torch.full_like(x, 9e17)  # their squared distances overflow
    for value in tiles.relevant(density, far, home, torch.arange(12).expand(12, -1)):
        assert value.isfinite().all()
