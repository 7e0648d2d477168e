"""EM of many mixtures at once: one mixture of B·K components, of which each row sees the K of its own data set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tmixture import fitting
from tmixture.accumulation import evidence
from tmixture.initialization import prior_rows, uniform
from tmixture.maximization import Rules, maximization
from tmixture.mixture import StudentTMixture
from tmixture.parameters import Parameters
from tmixture.reseeding import DEGENERATE, failed_components, share_of_regularization
from tmixture.scales.base import FLOAT64_LIMIT
from tmixture.scales.expanded import ExpandedScale
from tmixture.scales.full import FullScale
from tmixture.statistics import SufficientStatistics


@dataclass(frozen=True)
class Problem:
    """B data sets and how to fit them. Parameters and statistics are flat: of B·K components, one data set's in a row.

    Attributes:
        x: (B, n, d), each data set about its own mean, in the dtype of statistics.
        features: (B, n, p), what a structure that expands squares needs of them.
        n_components: K.
        rules: of the M-step; what is of a feature is of shape (B·K, d).
    """

    x: Tensor
    features: Tensor
    n_components: int
    rules: Rules

    @classmethod
    def of(cls, mixture: StudentTMixture, x: Tensor, variance: Tensor) -> Problem:
        """The fits of a mixture to data sets (B, n, d) whose features have these variances (B, d)."""
        K = mixture.n_components
        usual = torch.where((variance > 0).any(1), variance.mean(1), 1.0)[:, None]
        positive = torch.where(variance > 0, variance, usual).repeat_interleave(K, 0)
        credit = fitting.regularization(mixture.reg_covar, positive)
        rules = Rules(mixture.scale_update, False, mixture.dof_bounds, credit)
        return cls(x, mixture.structure.features(x), K, rules)

    def take(self, chosen: Tensor) -> Problem:
        """Some of the data sets, by a mask (B,)."""
        if bool(chosen.all()):
            return self
        owned = chosen.repeat_interleave(self.n_components)
        rules = replace(self.rules, regularization=self.rules.regularization[owned])
        return Problem(self.x[chosen], self.features[chosen], self.n_components, rules)

    def started(self, mixture: StudentTMixture, labels: Tensor, variance: Tensor, centres: Tensor | None) -> Parameters:
        """The Gaussian M-step from labels (B, n), as of `initialization.from_centres`; given means (B, K, d) stay."""
        K, rules = self.n_components, self.rules
        variance = variance.repeat_interleave(K, 0).maximum(rules.regularization)
        scale = mixture.structure.diagonal(variance)
        means = torch.zeros_like(variance) if centres is None else centres.reshape(variance.shape)
        base = uniform(means, scale, mixture.initial_dof.repeat(len(self.x)))
        shares = torch.nn.functional.one_hot(labels, K).to(means).mT.contiguous()
        statistics = self._statistics(base, shares, shares)
        credit = prior_rows(scale.take(torch.arange(1, device=means.device)), means.shape[1])
        rules = replace(rules, scale_update="classic", prior_rows=credit, prior_variance=variance)
        parameters = self._normalised(maximization(statistics, base, rules, all_alive=True))
        return parameters if centres is None else replace(parameters, means=base.means)

    def expectation(self, parameters: Parameters) -> tuple[SufficientStatistics, Tensor]:
        """The statistics, and the objective (B,) of each data set."""
        tails, B, K = parameters.tails, len(self.x), self.n_components
        distances, law = self._distances(parameters), tails.law.map(lambda part: part.view(B, K, 1))
        constant = tails.normalizer - parameters.scale.half_log_det(parameters.n_features) + parameters.weights.log()
        joint = law.log_prob(distances, law.logs(distances), constant.view(B, K, 1))
        log_likelihood, responsibilities = evidence(joint.mT)
        shares = responsibilities.mT
        statistics = self._statistics(parameters, shares, shares * law.outlier_weights(distances))
        traces = (parameters.scale.precisions(parameters.n_features) * self.rules.regularization).sum(1)
        return statistics, log_likelihood.mean(1) - traces.view(B, K).mean(1) / 2

    def maximization(self, statistics: SufficientStatistics, parameters: Parameters) -> Parameters:
        """The M-step of all data sets, each component of which has rows, or will not be asked for."""
        return self._normalised(maximization(statistics, parameters, self.rules, all_alive=True))

    def is_failing(self, statistics: SufficientStatistics, parameters: Parameters) -> Tensor:
        """Mask (B,) of the data sets of which a component would have to be started anew."""
        rows = statistics.responsibility.view(len(self.x), -1).cpu().numpy()
        n = self.x.shape[1]
        failing = np.zeros(len(rows), dtype=bool)
        for b in np.flatnonzero((rows < max(2, 0.1 * n / self.n_components)).any(1)).tolist():
            failing[b] = failed_components(rows[b], n, *self.own(b, parameters)).any()
        if isinstance(parameters.scale, ExpandedScale):  # squares are expanded about the data's mean, and not too far
            far = parameters.scale.expanded_terms(parameters.means) > FLOAT64_LIMIT * parameters.n_features
            failing |= far.view(len(self.x), -1).any(1).cpu().numpy()
        return torch.from_numpy(failing).to(self.x.device)

    def are_degenerate(self, statistics: SufficientStatistics, parameters: Parameters) -> list[bool]:
        """Whether a user should be warned of components of each data set, as of `degenerate_components`."""
        rows, total = statistics.responsibility.cpu().numpy(), self.x.shape[0] * self.x.shape[1]
        share = share_of_regularization(rows, total, parameters, self.rules.regularization) > DEGENERATE
        share = share.reshape(len(self.x), self.n_components, -1)
        return [bool(own.any()) for own in share & ~share.all(1, keepdims=True)]

    def own(self, b: int, parameters: Parameters) -> tuple[Parameters, Tensor]:
        """The parameters of one data set, and the regularization (d,) of its features."""
        components = torch.arange(self.n_components, device=self.x.device) + b * self.n_components
        return parameters.take(components), self.rules.regularization[b * self.n_components]

    def _normalised(self, parameters: Parameters) -> Parameters:
        return replace(parameters, weights=parameters.weights * len(self.x))

    def _distances(self, parameters: Parameters) -> Tensor:
        """δ (B, K, n)."""
        scale, B = parameters.scale, len(self.x)
        if isinstance(scale, ExpandedScale):
            coefficients, constants = (part.unflatten(0, (B, -1)) for part in scale.expansion(parameters.means))
            return torch.baddbmm(constants[:, :, None], coefficients, self.features.mT).clamp_(min=0)
        assert isinstance(scale, FullScale)
        return (self._offsets(parameters) @ scale.whitening.unflatten(0, (B, -1)).mT).square().sum(3)

    def _offsets(self, parameters: Parameters) -> Tensor:
        """Rows less means: (B, K, n, d)."""
        return self.x[:, None] - parameters.means.unflatten(0, (len(self.x), -1))[:, :, None]

    def _statistics(self, parameters: Parameters, shares: Tensor, weighted: Tensor) -> SufficientStatistics:
        """The sums of shares r and r·u (B, K, n)."""
        B, n, d = self.x.shape
        counts, mass = shares.sum(2).flatten(), weighted.sum(2).flatten()
        if isinstance(parameters.scale, ExpandedScale):
            sums = (weighted @ self.features).flatten(0, 1)
            first, scatter, reference = sums[:, :d], parameters.scale.squares(sums), torch.zeros_like(parameters.means)
        else:
            offsets = self._offsets(parameters)
            pulled = offsets * weighted[:, :, :, None]
            first, scatter = pulled.sum(2).flatten(0, 1), (pulled.mT @ offsets).flatten(0, 1)
            reference = parameters.means
        rows = torch.full_like(mass, n * B)  # of all data sets together, as an M-step asks
        nothing = torch.zeros_like(mass)
        return SufficientStatistics(counts, mass, first, scatter, nothing, nothing[0], rows, rows, reference)
