"""Weights of samples, for any loss that has one term per sample: from a mixture's clusters, or from labels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from tmixture import StudentTMixture
from tmixture.losses.memory import EmbeddingMemory

Frequency = Callable[[Tensor], Tensor]
"""Turns numbers of samples per cluster or class into weights, of the same shape, up to a factor."""

FrequencyName = Literal["inverse", "inverse_log", "effective_number"]

# Rows of an (n, K) temporary.
BLOCK_ROWS = 16384


def inverse(exponent: float = 1.0) -> Frequency:
    """n^(−exponent). 1 gives all clusters the same total weight, 0.5 is halfway to equal weights."""
    return partial(_inverse, exponent=exponent)


def inverse_log() -> Frequency:
    """1/log(1 + n), the weight that the released code of CXR-CML computes."""
    return _inverse_log


def effective_number(beta: float = 0.999) -> Frequency:
    """(1 − β)/(1 − βⁿ), one over the effective number of samples (Cui et al. 2019, Eq. 2)."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    return partial(_effective_number, beta=beta)


# Functions of the module, so that a loss with weights can be pickled.
def _inverse(counts: Tensor, exponent: float) -> Tensor:
    return counts**-exponent


def _inverse_log(counts: Tensor) -> Tensor:
    return 1 / torch.log1p(counts)


def _effective_number(counts: Tensor, beta: float) -> Tensor:
    return (1 - beta) / (1 - beta**counts)


FREQUENCIES: dict[str, Callable[[], Frequency]] = {
    "inverse": inverse,
    "inverse_log": inverse_log,
    "effective_number": effective_number,
}


INVERSE_ROOT = inverse(0.5)


class ClusterWeights(nn.Module):
    """Weights of samples from the clusters of a mixture, with mean one: the product of up to three factors.

    No labels are needed. The factors of a sample with assigned component k and responsibility r are

    - `mass`: a decreasing function of the number of samples in the cluster, N·π_k;
    - `outlier`: 1/u with u = (ν_k + d)/(ν_k + δ), large for samples that fit no cluster well;
    - `confidence`: r itself, or 1 and 0 for r above and below a threshold.

    Args:
        mixture: fitted, or to be fitted; until then all weights are one. It is no part of this module.
        mass: "inverse", "inverse_log", "effective_number", a function such as `inverse(0.5)`, or None.
        outlier: whether to divide by u.
        confidence: whether to multiply by r; a number is a threshold.
        limit: how many times larger or smaller than their median the first two factors may be together, at most; None
            for any number. A stray row far from everything would else outweigh a whole batch.
        recent: number of the latest rows over which the mean is one, while training: a batch of heavy samples moves a
            model more than one of light samples, and the features may move. None: over each batch.

    Attributes:
        calibration: (2,) the median of the first two factors and the mean of the weights over the rows of `calibrate`,
            zeros before; buffer.

    Examples:
        >>> mixture = StudentTMixture(3, 2, generator=0).fit(torch.randn(100, 2))
        >>> weights = ClusterWeights(mixture, mass=inverse(0.5), limit=5)
        >>> weights(torch.randn(32, 2)).mean()
        tensor(1.)
    """

    mass: Frequency | None
    recent: EmbeddingMemory | None
    calibration: Tensor

    def __init__(
        self,
        mixture: StudentTMixture,
        *,
        mass: FrequencyName | Frequency | None = None,
        outlier: bool = True,
        confidence: bool | float = False,
        limit: float | None = None,
        recent: int | None = None,
    ) -> None:
        super().__init__()
        if limit is not None and not limit > 1:
            raise ValueError(f"limit must be larger than 1, or None, got {limit}")
        self._mixture = [mixture]  # in a list, so that it is no submodule: the loss around has it
        self.mass = None if mass is None else _frequency(mass, "mass")
        self.outlier = outlier
        self.confidence = confidence
        self.limit = limit
        self.recent = None if recent is None else EmbeddingMemory(recent, mixture.n_features)
        self.register_buffer("calibration", torch.zeros(2))

    @property
    def mixture(self) -> StudentTMixture:
        """The mixture whose clusters they come from."""
        return self._mixture[0]

    def __repr__(self) -> str:
        mass = None if self.mass is None else _frequency_name(self.mass)
        limit = "" if self.limit is None else f", limit={self.limit}"
        recent = "" if self.recent is None else f", recent={self.recent.size}"
        return f"ClusterWeights(mass={mass}, outlier={self.outlier}, confidence={self.confidence}{limit}{recent})"

    @torch.no_grad()
    def forward(self, features: Tensor, *, learn: bool = True) -> Tensor:
        """Weights (n,) of rows (n, d) as the mixture takes them; their mean is one over the rows given together.

        For a mean of one over more than that, there are `recent` and `calibrate`. If no row is above a threshold, all
        weights are zero.

        Args:
            features: (n, d).
            learn: whether these rows are among the `recent` ones in train mode.
        """
        if not self.mixture.is_fitted:
            return torch.ones(len(features), device=features.device)
        if self.recent is not None and self.training and learn:
            self.recent.push(features)
            self.calibrate(self.recent.embeddings)
        emphasis, trust = self._factors(features)
        calibrated = bool(self.calibration[0] > 0)
        median, mean = self.calibration.to(emphasis) if calibrated else self._measure(emphasis, trust)
        return self._limited(emphasis, median) * trust / torch.where(mean > 0, mean, 1.0)

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> ClusterWeights:
        """From now on give weights relative to these rows (n, d), over which their mean is one; returns itself.

        So a batch of heavy samples moves a model more than one of light samples. To be repeated when the mixture or the
        features have changed, as once in an epoch; `recent` does it by itself.

        Raises:
            RuntimeError: the mixture is not fitted yet.
        """
        self.mixture.require_fitted()
        self.calibration = self._measure(*self._factors(features)).to(self.calibration)
        return self

    def _factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mass × outlier factor, and confidence: both (n,)."""
        blocks = [self._block_factors(block, len(features)) for block in features.split(BLOCK_ROWS)]
        emphasis, trust = zip(*blocks)
        return torch.cat(emphasis), torch.cat(trust)

    def _block_factors(self, features: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
        responsibility, labels = self.mixture(features).max(1)
        emphasis = trust = torch.ones_like(responsibility)
        if self.mass is not None:
            emphasis = emphasis * self.mass(self._counts(n_rows))[labels].to(emphasis)
        if self.outlier:
            emphasis = emphasis / self.mixture.outlier_weights(features).gather(1, labels[:, None])[:, 0]
        if self.confidence is True:
            trust = responsibility
        elif self.confidence is not False:
            trust = (responsibility >= self.confidence).to(responsibility)
        return emphasis, trust

    def _measure(self, emphasis: Tensor, trust: Tensor) -> Tensor:
        """The median of the emphasis, and the mean of the weights: (2,)."""
        median = emphasis.median()
        return torch.stack([median, (self._limited(emphasis, median) * trust).mean()])

    def _limited(self, emphasis: Tensor, median: Tensor) -> Tensor:
        return emphasis if self.limit is None else emphasis.clamp(median / self.limit, median * self.limit)

    def _counts(self, n_rows: int) -> Tensor:
        """Samples per cluster, of those the mixture has seen; of the rows asked about if it was never fitted to any."""
        running = self.mixture.running
        return self.mixture.weights * (running.total_weight if running.started else n_rows)


class LabelWeights:
    """Weights of samples from the frequencies of their labels, with mean one over the training set.

    The interface of `ClusterWeights`, with label vectors in the place of embeddings. Samples without a label count as
    a class of their own.

    Args:
        labels: of the training set: 0/1 vectors (N, C) for any number of labels per sample, or class indices (N,).
        frequency: as `mass` of `ClusterWeights`. The square root of the inverse frequency is the default.
        rule: how the weights of the labels of one sample are joined: "max" (that of its rarest label), "mean" or "sum".
    """

    n_classes: int
    class_weights: Tensor

    def __init__(
        self,
        labels: Tensor | np.ndarray,
        *,
        frequency: FrequencyName | Frequency = INVERSE_ROOT,
        rule: Literal["max", "mean", "sum"] = "max",
    ) -> None:
        if rule not in ("max", "mean", "sum"):
            raise ValueError(f"rule must be 'max', 'mean' or 'sum', got {rule!r}")
        self.rule = rule
        given = torch.as_tensor(labels)
        if len(given) == 0:
            raise ValueError("labels is empty: the frequencies of at least one sample are needed")
        self.n_classes = given.shape[1] if given.dim() == 2 else int(given.max()) + 1
        present = self._vectors(given)
        # A class that the training set lacks counts as seen once.
        self.class_weights = _frequency(frequency, "frequency")(present.sum(0).clamp(min=1))
        self.class_weights = self.class_weights / self._joined(present).mean()

    def __repr__(self) -> str:
        low, high = (float(weight) for weight in self.class_weights[:-1].aminmax())
        return f"LabelWeights({self.n_classes} classes, rule={self.rule!r}, class weights {low:.3g} … {high:.3g})"

    def __call__(self, labels: Tensor | np.ndarray) -> Tensor:
        """Weights (n,) of samples with these labels, (n, C) or (n,)."""
        given = torch.as_tensor(labels)
        return self._joined(self._vectors(given)).to(given.device, torch.float32)

    def _vectors(self, labels: Tensor) -> Tensor:
        """0/1 vectors (n, C + 1) in float64, the last column for samples without a label."""
        if labels.dim() == 1 and not labels.is_floating_point():
            if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.n_classes):
                raise ValueError(
                    f"labels must lie in 0 … {self.n_classes - 1}, got values from {labels.min()} to {labels.max()}"
                )
            labels = torch.nn.functional.one_hot(labels.long(), self.n_classes)
        if labels.dim() != 2 or labels.shape[1] != self.n_classes:
            raise ValueError(
                f"labels must be class indices (N,) or 0/1 vectors (N, {self.n_classes}), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if not ((labels == 0) | (labels == 1)).all():
            raise ValueError("labels must hold nothing but 0 and 1")
        labels = labels.double().cpu()
        return torch.cat([labels, (labels.sum(1, keepdim=True) == 0).double()], dim=1)

    def _joined(self, present: Tensor) -> Tensor:
        weights = present * self.class_weights
        if self.rule == "max":
            return weights.amax(1)
        total = weights.sum(1)
        return total if self.rule == "sum" else total / present.sum(1)


def _frequency(given: FrequencyName | Frequency, name: str) -> Frequency:
    if callable(given):
        return given
    if given not in FREQUENCIES:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, FREQUENCIES))} or a function, got {given!r}")
    return FREQUENCIES[given]()


def _frequency_name(frequency: Frequency) -> str:
    """As a user would write it."""
    if isinstance(frequency, partial):
        arguments = ", ".join(f"{name}={value}" for name, value in frequency.keywords.items())
        return f"{frequency.func.__name__.removeprefix('_')}({arguments})"
    return getattr(frequency, "__name__", repr(frequency)).removeprefix("_")
