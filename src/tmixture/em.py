"""Expectation-maximization: the E-step, the M-step, and their iteration with its stopping rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tmixture import distributed
from tmixture.chunks import Chunk
from tmixture.density import Density, negligible, working_density
from tmixture.dof import Leaps, expected_log_correction, solve_dof
from tmixture.numerics import accumulation_dtype, column_sums
from tmixture.parameters import Parameters
from tmixture.reseeding import failed_components, poorly_explained, reseed
from tmixture.scales.base import Moments, Shares
from tmixture.statistics import SufficientStatistics

# The variance of a feature, relative to what other features leave of it in a component, that float32 can tell apart.
NEARLY_SINGULAR = 5e4
# A step, in nats per row, after which a learned ν may leap.
SLOW = 1e-3


@dataclass(frozen=True)
class Anchors:
    """Points that means are held at, as by so many rows of latent precision one that count for nothing else.

    The prior of component k is exp(−½·rows_k·(μ_k − m_k)ᵀ Σ_k⁻¹ (μ_k − m_k)).

    Attributes:
        means: (K, d), m.
        rows: (K,), zero where nothing is held.
    """

    means: Tensor
    rows: Tensor

    def distances(self, parameters: Parameters) -> Tensor:
        """rows_k·(μ_k − m_k)ᵀ Σ_k⁻¹ (μ_k − m_k): (K,)."""
        density = Density(parameters, accumulation_dtype(parameters.means.device))
        return self.rows * density.mahalanobis(density.features(self.means)).diagonal()

    def scatter(self, old: Parameters, means: Tensor, weight: Tensor) -> Tensor:
        """What they add to the scatter about new means (K, d), in the structure's form.

        Args:
            old: the parameters under which the E-step was done.
            means: (K, d).
            weight: (K,).
        """
        scale, origin = old.scale.to(means.dtype), old.means.to(means.dtype).mean(0)
        centred, none_apart = old.means.to(means.dtype) - origin, torch.empty(0, dtype=torch.long, device=means.device)
        sums = SufficientStatistics.zeros(scale, scale.reference(centred, none_apart) + origin)
        sums.mass += weight
        shares = Shares(torch.zeros_like(weight.diag()), weight.diag())
        moments = Moments(sums.first, sums.scatter, centred, none_apart)
        scale.accumulate(moments, scale.features(self.means - origin), shares)
        return sums.about(scale, means).scatter


@dataclass(frozen=True)
class Rules:
    """How the M-step updates.

    Attributes:
        scale_update: "px" divides the scatter by Σ r·u (Kent, Tyler & Vardi 1994; the PX-EM of Liu, Rubin & Wu 1998),
            "classic" by Σ r (Peel & McLachlan 2000). The fixed points are the same.
        learn_dof: False, or whether ν is "shared" by the components or free per "component".
        dof_bounds: bounds of a learned ν.
        regularization: (d,), variances that every component is credited with, as if of a component of average size:
            a prior Π_k exp(−½·N/K·Σ_j λ_j·(Σ_k⁻¹)_jj), which `penalty` is the logarithm of. (Added to the diagonals as
            they are, whatever the size of a component, they would have no objective that EM raises.)
        variance: (d,), robust variances of the data, to tell what is too small beside them for float32.
        distributed: whether statistics are summed over the processes of the default group.
        prior_rows: rows of variance `prior_variance` that a component without rows is credited with. The credit fades
            out until it has five times as many of its own, so that a component of one or two rows is no spike, and one
            of many rows is exactly the maximum likelihood.
        prior_variance: (d,), in squared units of the data.
        own_rows: rows at its own mean that a component without rows is credited with, in its weight and its mean;
            fading like `prior_rows`. In a stream a component may have to wait for its first rows: it must not run to
            the wrong ones meanwhile, nor be left with a weight that no row can overcome.
        anchors: what the means are held at, if anything.
        kept: mask (K,), on the host, of the components that are never started anew, if there are any.
    """

    scale_update: Literal["px", "classic"]
    learn_dof: Literal[False, "shared", "component"]
    dof_bounds: tuple[float, float]
    regularization: Tensor
    variance: Tensor | float = 0.0
    distributed: bool = False
    prior_rows: float = 0.0
    prior_variance: Tensor | float = 0.0
    own_rows: float = 0.0
    anchors: Anchors | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """The state of a fit: the parameters reached, and the statistics and the objective under them."""

    parameters: Parameters
    statistics: SufficientStatistics
    objective: float
    """The mean log-likelihood less the `penalty`."""
    n_iter: int
    converged: bool
    reseeded: list[int]
    """Components that were given a new start to reach these parameters."""


EStep = Callable[[Parameters, float | None], SufficientStatistics]
"""Statistics of all data under parameters, given the mean log-likelihood before the M-step that led to them, if any."""


def expectation(
    chunks: Iterable[Chunk], parameters: Parameters, rules: Rules, dtype: torch.dtype
) -> SufficientStatistics:
    """The E-step: sufficient statistics of all chunks under the parameters (of all processes, where distributed).

    Args:
        chunks: the data.
        parameters: current parameters, best in float64.
        rules: used for what must be accumulated.
        dtype: of the arithmetic on chunks; float64 is used where float32 would cancel.
    """
    if is_nearly_singular(parameters, rules):
        dtype = accumulation_dtype(parameters.means.device)
    density = working_density(parameters, dtype, apart=True)
    statistics = no_statistics(density)
    for chunk in chunks:
        accumulate(statistics, density, chunk, learn_dof=bool(rules.learn_dof))
    if rules.distributed:
        distributed.sum_in_place(statistics.sums())
    return statistics


def is_nearly_singular(parameters: Parameters, rules: Rules) -> bool:
    """Whether rows lie so close to a subspace that what is left beside it drowns in the rounding errors of float32.

    That is the case for one-hot, compositional and collinear features.
    """
    if not parameters.scale.correlates:
        return False
    precisions = parameters.scale.precisions(parameters.n_features)
    return bool((precisions * rules.variance).max() > NEARLY_SINGULAR)


def no_statistics(density: Density) -> SufficientStatistics:
    """The statistics of no rows under these densities."""
    exact = accumulation_dtype(density.origin.device)
    reference = density.origin.to(exact) + density.reference.to(exact)
    return SufficientStatistics.zeros(density.scale, reference)


def accumulate(statistics: SufficientStatistics, density: Density, chunk: Chunk, *, learn_dof: bool) -> Tensor:
    """Add the statistics of a chunk, in place, and return its responsibilities (n, K)."""
    exact = statistics.mass.dtype
    features = density.features_in_turn(chunk.x)
    if chunk.responsibilities is None:
        distances, joint = density.relevant(features, chunk.allowed)
        log_likelihood, responsibilities = evidence(joint)
        precision = density.outlier_weights(distances)
    else:
        responsibilities = chunk.responsibilities.to(features.dtype)
        log_likelihood = features.new_zeros(len(features))
        precision = torch.ones_like(responsibilities)
    shares = responsibilities
    if chunk.weight is not None:
        shares = responsibilities * chunk.weight.to(features.dtype)[:, None]
    statistics.add_rows(log_likelihood, chunk.weight)
    weighted = shares * precision
    counts = column_sums(shares)
    statistics.responsibility += counts
    statistics.mass += column_sums(weighted)
    if learn_dof:
        correction = expected_log_correction(density.dof.to(exact), density.n_features)
        statistics.log_mass += column_sums(shares * precision.log()) + counts * correction
    moments = Moments(statistics.first, statistics.scatter, density.means, density.apart)
    density.scale.accumulate(moments, features, Shares(shares, weighted))
    return responsibilities


def evidence(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x_i) (n,) and the responsibilities (n, K), exactly zero where negligible, from log π_k·T_k(x_i) (n, K)."""
    top = joint.amax(1, keepdim=True)
    # Exact zeros let the M-step skip most rows. They come after the exponential, which takes several times as long
    # where it has an infinity to work on or a denormal number to make. The cut is on r and not on r·u: an outlier's u
    # is tiny, but its share r·u·(x−μ)(x−μ)ᵀ of the scatter is as large as anybody's.
    relative = (joint - top).clamp_(min=math.log(negligible(joint.dtype))).exp_()
    torch.threshold_(relative, 1.001 * negligible(joint.dtype), 0.0)
    total = relative.sum(1, keepdim=True)
    return (top + total.log())[:, 0], relative.div_(total)


def maximization(statistics: SufficientStatistics, parameters: Parameters, rules: Rules) -> Parameters:
    """The M-step: parameters from statistics.

    Components without any mass keep their mean, scale and ν.

    Args:
        statistics: sums or averages over rows.
        parameters: those under which the statistics were taken.
        rules: which updates to use.
    """
    old = parameters.scale.to(statistics.mass.dtype)
    n, w = statistics.responsibility, statistics.mass
    weight_per_row = statistics.weight / statistics.rows
    own = _credit(rules.own_rows, n, weight_per_row)
    shares = n if own is None else n + own
    weights = (shares / shares.sum()).clamp(min=torch.finfo(torch.float32).tiny)
    alive = (w > torch.finfo(w.dtype).tiny * 1e6) & (n > torch.finfo(n.dtype).tiny * 1e6)
    n, w = torch.where(alive, n, 1.0), torch.where(alive, w, 1.0)

    credited = statistics.weight / len(n) * rules.regularization
    penalty = (old.precisions(parameters.n_features) * credited).sum(1).expand_as(n)
    if rules.anchors:
        penalty = penalty + rules.anchors.distances(parameters) * weight_per_row
    expansion = _expansion(n * alive, w * alive, penalty, parameters.dof, old.per_component, rules)

    old_means = parameters.means.to(w.dtype)
    means = torch.where(alive[:, None], statistics.reference + statistics.first / w[:, None], old_means)
    if rules.anchors:
        pull = rules.anchors.rows * weight_per_row * expansion
        means = means.lerp(rules.anchors.means, (pull / (w + pull))[:, None])
    if own is not None:
        means = means.lerp(old_means, (own / (n + own))[:, None])
    delta = statistics.reference - means
    scatter, mass = old.translate(statistics.scatter, statistics.mass, statistics.first, delta), w
    if rules.anchors:
        scatter, mass = scatter + rules.anchors.scatter(parameters, means, pull), w + pull
    denominator, added = n * expansion, expansion[:, None] * credited
    prior = _credit(rules.prior_rows, n, weight_per_row)
    if prior is not None:
        denominator, added = denominator + prior, added + prior[:, None] * rules.prior_variance
    denominator = torch.where(alive, denominator, 1.0 if old.per_component else 0.0)
    scale = old.estimate(scatter, mass, denominator, added, parameters.n_features).where(alive, old)
    dof = _update_dof(statistics, n, w, expansion, alive, parameters.dof, rules)
    return parameters.followed_by(weights, means, scale, dof)


def _credit(rows: float, n: Tensor, weight_per_row: Tensor) -> Tensor | None:
    """What components (K,) of weight n are credited with, until they have five times so many rows of their own."""
    return (rows - n / weight_per_row / 5).clamp(min=0) * weight_per_row if rows else None


def penalty(parameters: Parameters, rules: Rules, rows: float | Tensor) -> Tensor:
    """What the priors take from the mean log-likelihood, of so many rows.

    That is ½·Σ_k Σ_j λ_j·(Σ_k⁻¹)_jj / K for the regularization, and ½·Σ_k δ_k(m_k)·rows_k / N for anchors.
    """
    precisions = parameters.scale.precisions(parameters.n_features)
    regularization = (precisions * rules.regularization.to(precisions)).sum(1).mean() / 2
    return regularization + (rules.anchors.distances(parameters).sum() / rows / 2 if rules.anchors else 0)


def _expansion(n: Tensor, w: Tensor, penalty: Tensor, dof: Tensor, per_component: bool, rules: Rules) -> Tensor:
    """The PX-EM expansion α: the latent precisions are taken as α·Gamma(ν/2, ν/2), and Σ is divided by α.

    Q depends on α as −½·nν·log α − ½·νw/α − ½·α·penalty, so that α is w/n without a penalty, and else the root of a
    quadratic equation. With a tied scale one α is shared, and the sums over components take the place of nν and νw. The
    classic update is α = 1.

    Args:
        n: (K,), Σ r.
        w: (K,), Σ r·u.
        penalty: (K,), Σ_j credited_j·(Σ_k⁻¹)_jj.
        dof: (K,), ν.
        per_component: whether every component has a scale of its own.
        rules: which update to use.
    """
    if rules.scale_update == "classic":
        return torch.ones_like(n)
    nu = dof.to(n.dtype).clamp(max=1e12)
    a, b, c = nu * n, nu * w, penalty
    if not per_component:
        a, b, c = (part.sum().expand_as(n) for part in (a, b, c))
    return torch.where(a > 0, 2 * b / (a + (a.square() + 4 * b * c).sqrt()), 1.0)


def _update_dof(
    statistics: SufficientStatistics,
    n: Tensor,
    w: Tensor,
    expansion: Tensor,
    alive: Tensor,
    dof: Tensor,
    rules: Rules,
) -> Tensor:
    """ν from log(ν/2) − ψ(ν/2) + c = 0 with c = 1 − log α + E[log U] − E[U]/α, averaged over the rows."""
    if not rules.learn_dof:
        return dof
    constant = 1 - expansion.log() + statistics.log_mass / n - w / n / expansion
    if rules.learn_dof == "shared":
        share = statistics.responsibility * alive
        constant = ((share * constant).sum() / share.sum()).expand_as(constant)
        return solve_dof(constant, rules.dof_bounds)
    return torch.where(alive, solve_dof(constant, rules.dof_bounds), dof.to(constant.dtype))


def iterate(
    chunks: Iterable[Chunk],
    parameters: Parameters,
    rules: Rules,
    *,
    dtype: torch.dtype,
    max_iter: int,
    tol: float,
    generator: torch.Generator | None,
    max_reseeds: int = 3,
    e_step: EStep | None = None,
) -> Iterator[Step]:
    """Run EM, yielding the state after every E-step, which is `e_step` if given and else `expectation`.

    Stops when `what_is_left` of the objective is at most `tol`, or after `max_iter` M-steps. A component that dies or
    collapses onto a point is re-seeded, at most `max_reseeds` times. A learned ν leaps ahead now and then, and back if
    the objective says so.
    """
    history: list[float] = []  # since the last new start
    leaps = Leaps(rules.dof_bounds) if rules.learn_dof and e_step is None else None
    before_leap: Parameters | None = None
    reseeds = torch.zeros(parameters.n_components, dtype=torch.long)
    reseeded: list[int] = []
    total_rows = 1.0
    for n_iter in range(max_iter + 1):
        if e_step:
            before = history[-1] + float(penalty(parameters, rules, total_rows)) if history else None
            statistics = e_step(parameters, before)
        else:
            statistics = expectation(chunks, parameters, rules, dtype)
        objective, total_rows, rows = on_host(statistics, penalty(parameters, rules, statistics.rows))
        if leaps and before_leap and objective < history[-1]:
            leaps.shorten()
            parameters = before_leap
            statistics = expectation(chunks, parameters, rules, dtype)
            objective, total_rows, rows = on_host(statistics, penalty(parameters, rules, statistics.rows))
        before_leap = None
        history.append(objective)
        converged = what_is_left(history) <= tol
        yield Step(parameters, statistics, objective, n_iter, converged, reseeded)
        if converged or n_iter == max_iter:
            return
        parameters = maximization(statistics, parameters, rules)
        failing = failed_components(rows, total_rows, parameters, rules.regularization) & (reseeds < max_reseeds)
        if rules.kept is not None:
            failing &= ~rules.kept
        reseeded = failing.nonzero()[:, 0].tolist()
        if reseeded:
            reseeds += failing
            candidates = poorly_explained(chunks, parameters, len(reseeded), dtype, generator, rules.distributed)
            reseeded = reseeded if len(candidates) else []  # where every row has its class
        if reseeded:
            parameters = reseed(parameters, reseeded, candidates)[0]
            history = []
        elif leaps and is_slow(history) and (dof := leaps.next(parameters.dof)) is not None:
            before_leap, parameters = parameters, replace(parameters, dof=dof)
            settled = replace(rules, learn_dof=False)  # the scales follow, before the leap is judged
            parameters = maximization(expectation(chunks, parameters, settled, dtype), parameters, settled)


def is_slow(history: list[float]) -> bool:
    """Whether the components have found their rows, and only details are left, such as ν."""
    return len(history) > 1 and history[-1] - history[-2] < SLOW


def what_is_left(history: list[float]) -> float:
    """How much further the last of these numbers will rise, by Aitken's extrapolation of a geometric series.

    The last step says little about that: EM slows down to steps far smaller than what is left (Böhning et al. 1994).
    Of the last three extrapolations the largest counts, as a single step may be small by chance.

    Args:
        history: of an objective that rises, but for rounding errors.
    """

    def extrapolated(a: float, b: float, c: float) -> float:
        before, step = b - a, c - b
        if before <= 0 or step <= 0:  # no more than rounding errors
            return max(abs(before), abs(step))
        return step * step / (before - step) if step < before else math.inf

    last = history[-5:]
    return max(map(extrapolated, last, last[1:], last[2:])) if len(last) == 5 else math.inf


def on_host(statistics: SufficientStatistics, penalty: Tensor | float = 0.0) -> tuple[float, float, Tensor]:
    """The mean log-likelihood less a penalty, and the rows, all and those of each component (K,).

    All that an iteration decides by is fetched at once, because a GPU comes to a halt for it.
    """
    objective = (statistics.log_likelihood / statistics.weight - penalty)[None]
    rows_per_weight = statistics.rows / statistics.weight
    numbers = torch.cat([objective, statistics.rows[None], statistics.responsibility * rows_per_weight]).tolist()
    return numbers[0], numbers[1], torch.tensor(numbers[2:], dtype=torch.float64)
