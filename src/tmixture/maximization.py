"""The M-step: parameters from statistics, and what the objective has beside the likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tmixture.dof import solve_dof
from tmixture.frozen import Frozen
from tmixture.parameters import Parameters
from tmixture.priors import Prior
from tmixture.shrinkage import Anchors, Shrinkage
from tmixture.statistics import SufficientStatistics

# Weights up to this are those of components that a prior has made vanish.
VANISHED = 2 * torch.finfo(torch.float32).tiny


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
        anchors: what the means are held at.
        shrinkage: what the scales shrink to, if anything.
        weight_rows: rows that a component has in the weights beside its own. If negative, a component vanishes that has
            no more of its own.
        frozen: what stays as it is, if anything.
        allow_missing: whether values may be missing.
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
    anchors: tuple[Anchors, ...] = ()
    shrinkage: Shrinkage | None = None
    weight_rows: float = 0.0
    frozen: Frozen | None = None
    allow_missing: bool = False
    kept: Tensor | None = None

    def keeping(self, components: Tensor) -> Rules:
        """The same, with some more components (K,), on the host, that are never started anew."""
        return replace(self, kept=components if self.kept is None else self.kept | components)

    def believing(self, prior: Prior | None, n_components: int, mean: Tensor, variance: Tensor) -> Rules:
        """The same with a prior, where the data has this mean (d,) and these are the variances (d,) to expect."""
        if prior is None:
            return self
        rules = replace(self, weight_rows=prior.weight_rows)
        if prior.mean_rows:
            means = prior.mean_like(mean).expand(n_components, -1)
            anchors = Anchors(means, torch.full_like(means[:, 0], prior.mean_rows))
            rules = replace(rules, anchors=(*rules.anchors, anchors))
        if prior.scale_rows:
            root = torch.linalg.cholesky(prior.scale_like(variance)).T.contiguous()
            rules = replace(rules, shrinkage=Shrinkage(root, prior.scale_rows))
        return rules

    def holding(self, frozen: Frozen | None) -> Rules:
        """The same with what stays as it is, whose components are never started anew."""
        if frozen is None:
            return self
        return replace(self, frozen=frozen).keeping((frozen.means | frozen.scales).cpu())

    def unless_frozen(self, dof: Tensor, old: Tensor) -> Tensor:
        """New ν (K,), but the old ones of components whose ν stays."""
        return dof if self.frozen is None or dof is old else torch.where(self.frozen.dof, old.to(dof), dof)


def maximization(
    statistics: SufficientStatistics, parameters: Parameters, rules: Rules, *, all_alive: bool = False
) -> Parameters:
    """The M-step: parameters from statistics.

    Components without any mass keep their mean, scale and ν.

    Args:
        statistics: sums or averages over rows.
        parameters: those under which the statistics were taken.
        rules: which updates to use.
        all_alive: whether every component is known to have rows, which spares telling them apart.
    """
    old, frozen = parameters.scale.to(statistics.mass.dtype), rules.frozen
    n, w = statistics.responsibility, statistics.mass
    own = _credit(rules.own_rows, n, statistics)
    weights = _updated_weights(n if own is None else n + own, parameters.weights, statistics, rules)
    alive = None
    if not all_alive:
        alive = (w > torch.finfo(w.dtype).tiny * 1e6) & (n > torch.finfo(n.dtype).tiny * 1e6)
        n, w = torch.where(alive, n, 1.0), torch.where(alive, w, 1.0)

    share = statistics.weight / len(n)
    penalty = ((old.precisions(parameters.n_features) * rules.regularization).sum(1) * share).expand_as(n)
    for anchors in rules.anchors:
        penalty = penalty + anchors.distances(parameters) * statistics.weight_per_row
    if rules.shrinkage:
        penalty = penalty + rules.shrinkage.traces(old, len(n)) * statistics.weight_per_row
    expansion = _expansion(n, w, alive, penalty, statistics, parameters, rules)

    old_means = parameters.means.to(w.dtype)
    means, mass = statistics.reference + statistics.first / w[:, None], w
    if alive is not None:
        means = torch.where(alive[:, None], means, old_means)
    for anchors in rules.anchors:
        pull = anchors.rows * statistics.weight_per_row * expansion
        mass = mass + pull
        means = means.lerp(anchors.means, (pull / mass)[:, None])
    if own is not None:
        means = means.lerp(old_means, (own / (n + (mass - w) + own))[:, None])
    if frozen:
        means = torch.where(frozen.means[:, None], old_means, means)
        mass = mass.masked_fill(frozen.means, torch.inf)  # nothing moves them, not the mean of latent factors either

    delta = statistics.reference - means
    scatter = old.translate(statistics.scatter, statistics.mass, statistics.first, delta)
    for anchors in rules.anchors:
        scatter = scatter + anchors.scatter(parameters, means, anchors.rows * statistics.weight_per_row * expansion)
    denominator, added = n * expansion, (expansion * share)[:, None] * rules.regularization
    prior = _credit(rules.prior_rows, n, statistics)
    if prior is not None:
        denominator, added = denominator + prior, added + prior[:, None] * rules.prior_variance
    if alive is not None:
        denominator = torch.where(alive, denominator, 1.0 if old.per_component else 0.0)
    if rules.shrinkage:
        rows = (rules.shrinkage.rows * statistics.weight_per_row).expand_as(n)
        denominator, scatter = denominator + rows * expansion, scatter + rules.shrinkage.scatter(old, rows, expansion)
    scale = old.estimate(scatter, mass, denominator, added, parameters.n_features)
    if alive is not None:
        scale = scale.where(alive, old)
    dof = _update_dof(statistics, n, w, expansion, alive, parameters.dof, rules)
    if frozen:
        scale = frozen.scale_of(scale, old)
    return parameters.followed_by(weights, means, scale, rules.unless_frozen(dof, parameters.dof))


def _updated_weights(n: Tensor, old: Tensor, statistics: SufficientStatistics, rules: Rules) -> Tensor:
    """π (K,) in proportion to the rows of the data and of the prior; what is frozen keeps its share of the whole."""
    shares = n
    if rules.weight_rows:
        shares = (n + rules.weight_rows * statistics.weight_per_row).clamp(min=0)
        shares = torch.where(shares.sum() > 0, shares, n)  # never do all of them vanish
    if rules.frozen:
        shares = shares.masked_fill(rules.frozen.weights, 0)
    weights = shares / shares.sum()
    if rules.frozen:
        left = 1 - (old * rules.frozen.weights).sum()
        weights = torch.where(rules.frozen.weights, old.to(weights), weights * left)
    return weights.clamp(min=torch.finfo(torch.float32).tiny)


def _credit(rows: float, n: Tensor, statistics: SufficientStatistics) -> Tensor | None:
    """What components (K,) of weight n are credited with, until they have five times so many rows of their own."""
    if not rows:
        return None
    per_row = statistics.weight_per_row
    return (rows - n / per_row / 5).clamp(min=0) * per_row


def penalty(parameters: Parameters, rules: Rules, rows: float | Tensor) -> Tensor:
    """What the priors take from the mean log-likelihood, of so many rows.

    That is ½·Σ_k Σ_j λ_j·(Σ_k⁻¹)_jj / K for the regularization, ½·Σ_k δ_k(m_k)·rows_k / N for anchors, and for `Prior`
    its logarithm over −N. A component that has vanished has no part in that of the weights.
    """
    precisions = parameters.scale.precisions(parameters.n_features)
    taken = (precisions * rules.regularization.to(precisions)).sum() / (2 * len(precisions))
    for anchors in rules.anchors:
        taken = taken + anchors.distances(parameters).sum() / rows / 2
    if rules.shrinkage:
        log_det = 2 * parameters.scale.half_log_det(parameters.n_features).expand(parameters.n_components)
        traces = rules.shrinkage.traces(parameters.scale, parameters.n_components)
        taken = taken + (rules.shrinkage.rows * log_det + traces).sum() / rows / 2
    if rules.weight_rows:
        present = parameters.weights > VANISHED
        taken = taken - rules.weight_rows * (parameters.weights.log() * present).sum() / rows
    return taken


def _expansion(
    n: Tensor,
    w: Tensor,
    alive: Tensor | None,
    penalty: Tensor,
    statistics: SufficientStatistics,
    parameters: Parameters,
    rules: Rules,
) -> Tensor:
    """The PX-EM expansion α: the latent precisions are taken as α·Gamma(ν/2, ν/2), and Σ is divided by α.

    Q depends on α as −½·(nν − rows·d)·log α − ½·νw/α − ½·α·penalty, with the rows that shrinkage has, so that α is w/n
    without a penalty, and else the root of a quadratic equation. With a tied scale one α is shared, and the sums over
    components take the place of nν and νw. The classic update is α = 1, which a frozen scale has, too.

    Args:
        n: (K,), Σ r.
        w: (K,), Σ r·u.
        alive: mask (K,) of the components that have rows; None if all of them do.
        penalty: (K,), Σ_j credited_j·(Σ_k⁻¹)_jj, and that of the priors.
        statistics: of the E-step.
        parameters: of the E-step.
        rules: which update to use.
    """
    if rules.scale_update == "classic":
        return torch.ones_like(n)
    half = parameters.tails.half_dof
    a, b, c = n * half, 2 * w * half, penalty
    if alive is not None:
        a, b = a * alive, b * alive
    if rules.shrinkage:
        a = a - rules.shrinkage.rows * statistics.weight_per_row * (parameters.n_features / 2)
    if not parameters.scale.per_component:
        a, b, c = (part.sum().expand_as(n) for part in (a, b, c))
    root = torch.addcmul(a.square(), b, c).sqrt()
    expansion = b / (a + root)
    if rules.shrinkage:  # a may be negative, and the sum above a difference
        expansion = torch.where(a < 0, (root - a) / c, expansion)
    if alive is not None:
        expansion = torch.where(b > 0, expansion, 1.0)
    return torch.where(rules.frozen.scales, 1.0, expansion) if rules.frozen else expansion


def _update_dof(
    statistics: SufficientStatistics,
    n: Tensor,
    w: Tensor,
    expansion: Tensor,
    alive: Tensor | None,
    dof: Tensor,
    rules: Rules,
) -> Tensor:
    """ν from log(ν/2) − ψ(ν/2) + c = 0 with c = 1 − log α + E[log U] − E[U]/α, averaged over the rows."""
    if not rules.learn_dof:
        return dof
    constant = 1 - expansion.log() + statistics.log_mass / n - w / n / expansion
    if rules.learn_dof == "shared":
        share = statistics.responsibility if alive is None else statistics.responsibility * alive
        if rules.frozen:
            share = share * ~rules.frozen.dof
        constant = ((share * constant).sum() / share.sum()).expand_as(constant)
        return solve_dof(constant, rules.dof_bounds)
    solution = solve_dof(constant, rules.dof_bounds)
    return solution if alive is None else torch.where(alive, solution, dof.to(constant.dtype))
