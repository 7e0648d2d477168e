"""Whether each special case in the code still pays: the time without it over the time with it, in one run.

python -m benchmarks.choices

Where the ratio is near 1 on the machines that matter, the special case should go.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median, quantiles

import torch
from torch import Tensor

from tmixture import StudentTMixture
from tmixture.accumulation import evidence
from tmixture.density import Density, working_density
from tmixture.dof import solve_dof
from tmixture.em import expectation
from tmixture.maximization import Rules
from tmixture.model import MixtureModel
from tmixture.numerics import cross_moments, exact
from tmixture.parameters import Parameters
from tmixture.scales.base import Moments, Shares
from tmixture.scales.lowrank import LowRankScale
from tmixture.scales.pairs import pairs_of, weighted_sums

Choice = tuple[str, Callable[[], object], Callable[[], object]]
"""A problem and what to time: with the special case, and without it."""


def blobs(n: int, d: int, K: int) -> tuple[Tensor, Tensor]:
    """Rows (n, d) of K clusters with unit variances, and their labels (n,)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(K, d, generator=generator)
    labels = torch.randint(K, (n,), generator=generator)
    return centres[labels] + torch.randn(n, d, generator=generator), labels


def fitted(K: int, d: int, n: int, **settings: object) -> tuple[StudentTMixture, Tensor]:
    x, labels = blobs(n, d, K)
    mixture = StudentTMixture(K, d, max_iter=2, tol=0, generator=0, **settings)  # type: ignore[arg-type]
    return mixture.fit(x, responsibilities=labels), x


def cached_chunks() -> Iterator[Choice]:
    """An E-step on chunks whose temporaries stay in a CPU's caches, or on all rows at once."""
    for K, d in ((10, 32), (40, 128), (100, 512)):
        rules = Rules("px", False, (0.5, 200.0), torch.full((d,), 1e-6))
        mixture, x = fitted(K, d, 20_000, covariance_type="diag")
        e_step = partial(expectation, parameters=mixture.snapshot(), rules=rules, dtype=torch.float32)
        whole = mixture.chunks(x, size=len(x))
        yield f"K={K}, d={d}, 20,000 rows", partial(e_step, mixture.chunks(x)), partial(e_step, whole)


def one_exponential() -> Iterator[Choice]:
    """Evidence and responsibilities from one exponential, or from logsumexp and softmax."""
    for n, K in ((4096, 10), (4096, 100)):
        joint = -100 * torch.rand(n, K, generator=torch.Generator().manual_seed(0))
        yield f"K={K}, {n} rows", partial(_evidence_by_one, joint), partial(_evidence_by_two, joint)


def _evidence_by_one(joint: Tensor) -> tuple[Tensor, Tensor]:
    return evidence(joint.clone())


def _evidence_by_two(joint: Tensor) -> tuple[Tensor, Tensor]:
    return joint.logsumexp(1), joint.softmax(1)


def sparse_pairs() -> Iterator[Choice]:
    """Moments summed over the rows that have a share, or by a matrix product over all."""
    for n, K, p in ((4096, 40, 256), (4096, 400, 1024), (4096, 4000, 1024)):
        x, weight = torch.randn(n, p, generator=torch.Generator().manual_seed(0)), one_hot(n, K)
        yield f"K={K}, {p} moments, {n} rows", partial(weighted_sums, weight, x), partial(cross_moments, weight, x)


def one_hot(n: int, K: int) -> Tensor:
    """Responsibilities (n, K) of rows that belong wholly to one component each."""
    return blobs(n, 1, K)[1][:, None].eq(torch.arange(K)).float()


def parts_of_full() -> Iterator[Choice]:
    """Distances in parts, of which the first rule out most components, or whole."""
    for K, d in ((10, 64), (10, 128), (20, 256), (40, 512)):
        mixture, x = fitted(K, d, 4096, covariance_type="full")
        density = working_density(mixture.snapshot(), torch.float32)
        features = density.features(x)
        yield f"K={K}, d={d}, 4096 rows", partial(density.relevant, features), partial(_joint_of_all, density, features)


def _joint_of_all(density: Density, features: Tensor) -> Tensor:
    return density.joint(density.mahalanobis(features))


def components_apart() -> Iterator[Choice]:
    """One component far from the others in float32 by differences, or all in float64 because of it."""
    for K, d in ((20, 128), (100, 256)):
        mixture, x = fitted(K, d, 4096, covariance_type="diag")
        mixture.means[0] += 1000.0
        joints = partial(_joints, mixture.snapshot(), x)
        yield f"K={K}, d={d}, 4096 rows", partial(joints, apart=True), partial(joints, apart=False)


def _joints(parameters: Parameters, x: Tensor, *, apart: bool) -> Tensor:
    density = working_density(parameters, torch.float32, apart=apart)
    return density.relevant(density.features(x))[1]


def lowrank_tiles() -> Iterator[Choice]:
    """The moments of many low-rank components in batched tiles, or one component after another."""
    for K, d, q in ((10, 64, 4), (50, 256, 8), (500, 128, 4)):
        scale = LowRankScale.diagonal(torch.ones(K, d), q)
        features = scale.features(torch.randn(4096, d, generator=torch.Generator().manual_seed(0)))
        shares = Shares(one_hot(4096, K), one_hot(4096, K))
        in_tiles = partial(_moments, scale.accumulate, features, shares, scale.loadings.shape)
        one_by_one = partial(_moments, partial(_accumulate_one_by_one, scale), features, shares, scale.loadings.shape)
        for mine, other in zip(in_tiles(), one_by_one()):  # the two are one function
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-2)
        yield f"K={K}, d={d}, rank {q}, 4096 rows", in_tiles, one_by_one


def _moments(
    accumulate: Callable[[Moments, Tensor, Shares], None], features: Tensor, shares: Shares, shape: torch.Size
) -> tuple[Tensor, Tensor]:
    K, d, q = shape
    first, scatter = torch.zeros(K, d, dtype=torch.float64), torch.zeros(K, d + q, 1 + q, dtype=torch.float64)
    accumulate(Moments(first, scatter, first.float(), torch.empty(0, dtype=torch.long)), features, shares)
    return first, scatter


def _accumulate_one_by_one(scale: LowRankScale, moments: Moments, features: Tensor, shares: Shares) -> None:
    K, d, _ = scale.loadings.shape
    projection, covariance = scale._posterior
    rows, components, value = pairs_of(shares.weight)
    ends = torch.bincount(components, minlength=K).tolist()
    for k, (chosen, share) in enumerate(zip(rows.split(ends), value.split(ends))):
        x = features[chosen, :d] - moments.means[k]
        y = torch.cat([x, x @ projection[k].to(x).T], dim=1)
        weighted = torch.cat([share[:, None], share[:, None] * y[:, d:]], dim=1)
        sums = exact(y.T @ weighted)
        moments.first[k] += sums[:d, 0]
        sums[:d, 0] = exact(share @ x.square())
        moments.scatter[k] += sums
    of_each = shares.responsibility.sum(0, dtype=moments.scatter.dtype)
    moments.scatter[:, d:, 1:] += covariance * of_each[:, None, None]


def newton_for_dof() -> Iterator[Choice]:
    """Degrees of freedom by four Newton steps, or by fifty bisections."""
    for K in (10, 1000):
        constant = -torch.logspace(-2, 0, K, dtype=torch.float64)
        yield f"K={K}", partial(solve_dof, constant, (0.5, 200.0)), partial(_bisected, constant, 0.5, 200.0)


def _bisected(constant: Tensor, low: float, high: float) -> Tensor:
    a, b = torch.full_like(constant, low).log(), torch.full_like(constant, high).log()
    for _ in range(50):
        middle = (a + b) / 2
        half = middle.exp() / 2
        small = half.log() - torch.digamma(half) + constant > 0
        a, b = torch.where(small, middle, a), torch.where(small, b, middle)
    return ((a + b) / 2).exp()


def prepared_density() -> Iterator[Choice]:
    """A question to a mixture whose densities are prepared already, or prepared anew each time."""
    for structure, K, d in (("diag", 40, 512), ("full", 40, 256)):
        mixture, x = fitted(K, d, 4096, covariance_type=structure)
        yield f"{structure}, K={K}, d={d}, 32 rows", partial(mixture, x[:32]), partial(_asked_anew, mixture, x[:32])


def _asked_anew(mixture: MixtureModel, batch: Tensor) -> Tensor:
    mixture.adopt(mixture.snapshot())
    return mixture(batch)


CHOICES = (
    cached_chunks,
    one_exponential,
    sparse_pairs,
    parts_of_full,
    components_apart,
    lowrank_tiles,
    newton_for_dof,
    prepared_density,
)


def ratios(first: Callable[[], object], second: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of the second over seconds of the first, in turn."""
    return [_seconds(second) / _seconds(first) for _ in range(repeats + 1)][1:]  # the first one warms up


def _seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", help="the name of one choice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| choice | problem | time without / with | middle half |\n|---|---|---:|---:|")
    for choice in CHOICES:
        if arguments.only not in (None, choice.__name__):
            continue
        for problem, with_it, without in choice():
            measured = ratios(with_it, without, arguments.repeats)
            low, _, high = quantiles(measured, n=4)
            name = choice.__name__.replace("_", " ")
            print(f"| {name} | {problem} | {median(measured):.2f} | {low:.2f} … {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
