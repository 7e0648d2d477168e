"""`ClusterLoss`: any loss of pytorch-metric-learning on labels that a mixture finds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch import Tensor

from tmixture import StudentTMixture
from tmixture.distributed import is_active, together, world_size
from tmixture.losses.memory import EmbeddingMemory
from tmixture.losses.refit import refit_mixture
from tmixture.losses.repeats import LastBatch, is_recomputation
from tmixture.losses.restore import restored_after_errors
from tmixture.losses.rows import Batch, at_least_float32, lengthened, normalized_data, unit_rows
from tmixture.losses.sharing import Exchange, share
from tmixture.losses.statistics import LossStatistics
from tmixture.losses.terms import Terms, count_terms, weigh_anchors
from tmixture.losses.trial import check_combination
from tmixture.losses.weights import FREQUENCIES, ClusterWeights, Frequency
from tmixture.precision import full_precision

# A mixture is first fitted to a memory when it holds this many rows per component, or when it is full.
FIRST_FIT_ROWS = 10

# How a mixture made here follows the embeddings: a batch makes up this share of what is known after it.
DRIFT_RATE = 0.02

RefitPolicy = int | Literal["streaming", "external"]
Weighting = Literal["outlier", "confidence", "inverse", "inverse_log", "effective_number"]


class ClusterLoss(BaseMetricLossFunction):
    """A loss of pytorch-metric-learning in which the labels come from a Student-t mixture.

    Like batch normalisation it learns by being called. In train mode a call first updates the mixture with the detached
    embeddings of the batch, then asks it for labels; in eval mode the mixture stays as it is. Until the mixture has
    seen enough (10 rows per component), the loss is a zero with a graph.

    With `labels` or `indices_tuple` it is the wrapped loss, and the mixture takes no part: no update, no weights, no
    memory. `labels` without an `indices_tuple` go through the miner, if there is one.

    A batch that comes again within a step, as in gradient accumulation or in activation checkpointing, is learned once:
    more than half of its rows are bit for bit those of the last call, or the call is part of a backward pass. Where the
    rows change, say `learn=False`. An error leaves all state as it was.

    Everything is computed in at least float32, whatever the embeddings' dtype and whatever autocast and
    `torch.set_float32_matmul_precision` say.

    In several processes a train-mode call is a collective operation, and the mixtures stay identical: each process
    brings its own rows or, in a `DistributedLossWrapper`, all of them. The mixture must have been made with
    `distributed=True`, as one made here is. The memory holds the rows of all processes. An error in one of them is one
    in all: the others raise a `RuntimeError` that quotes it.

    Args:
        mixture: a `StudentTMixture`, fitted or not; or None, with `n_components` and `embedding_size`.
        loss: any loss of pytorch-metric-learning that takes labels or tuples. Its distance, reducer and regularizer are
            this one's. It is tried on a few rows, and refused if it cannot do what is asked.
        miner: any miner of pytorch-metric-learning, or None for all pairs or triplets.
        n_components: number of clusters of a mixture to be made here.
        embedding_size: its number of features.
        refit: how the mixture learns in train mode.
            "streaming": from every batch, by `mixture.partial_fit`.
            An integer n: by a new fit to the memory every n calls, the first one as soon as the memory has 10 rows per
            component or is full.
            "external": not by itself; fit it from outside, or by `end_epoch`.
        memory_size: how many recent embeddings serve as further positives and negatives, and for refits. They are not
            used together with `ref_emb`.
        weights: of the anchors' terms: "outlier" (1/u), "confidence" (r), "inverse", "inverse_log" or
            "effective_number" (of the cluster's mass), or a function of that; or a `ClusterWeights` of the same
            mixture.
        normalize: whether the mixture clusters L2-normalised embeddings.
        nonfinite: what to do about embeddings with NaN or infinity: "raise" a ValueError before anything changes, or
            "skip" these rows.

    Examples:
        >>> loss_fn = ClusterLoss(loss=SupConLoss(), n_components=40, embedding_size=512)
        >>> loss = loss_fn(torch.randn(32, 512, requires_grad=True))
    """

    steps: Tensor

    def __init__(
        self,
        mixture: StudentTMixture | None = None,
        loss: BaseMetricLossFunction | None = None,
        miner: BaseMiner | None = None,
        *,
        n_components: int | None = None,
        embedding_size: int | None = None,
        refit: RefitPolicy = "streaming",
        memory_size: int = 0,
        weights: Weighting | Frequency | ClusterWeights | None = None,
        normalize: bool = True,
        nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if not isinstance(loss, BaseMetricLossFunction):
            raise ValueError(
                "loss must be a loss of pytorch-metric-learning that derives from BaseMetricLossFunction, got "
                f"{type(loss).__name__}; instead of a CrossBatchMemory, give memory_size"
            )
        if miner is not None and not isinstance(miner, BaseMiner):
            raise ValueError(f"miner must be a miner of pytorch-metric-learning or None, got {miner!r}")
        if nonfinite not in ("raise", "skip"):
            raise ValueError(f"nonfinite must be 'raise' or 'skip', got {nonfinite!r}")
        super().__init__()
        self.loss = loss
        self.distance, self.reducer = loss.distance, loss.reducer
        self.miner = miner
        self.mixture = _mixture(mixture, n_components, embedding_size)
        self.memory = EmbeddingMemory(memory_size, self.mixture.n_features) if memory_size else None
        self.refit = _policy(refit, memory_size, self.mixture.n_components)
        self.weights = _weights(weights, self.mixture)
        self.normalize = normalize
        self.nonfinite = nonfinite
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        check_combination(
            loss,
            miner,
            self.mixture.n_components,
            self.mixture.n_features,
            memory=self.memory is not None,
            weights=self.weights is not None,
        )
        self._statistics = LossStatistics()
        self._last = LastBatch()

    # ---------------------------------------------------------------- the loss

    # What follows is no graph: it decides by values, and sorts with NumPy and faiss.
    @torch.compiler.disable
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        cluster_embeddings: Tensor | None = None,
        learn: bool = True,
    ) -> Tensor:
        """The loss: a scalar.

        Args:
            embeddings: (B, d).
            labels: (B,); if given, the mixture takes no part.
            indices_tuple: triplets (a, p, n) or pairs (a1, p, a2, n); if given, the mixture takes no part.
            ref_emb: (M, d), where positives and negatives are taken from, in place of the batch.
            ref_labels: (M,), their labels. Without them M = B, and row i belongs to the same sample as embedding i, as
                a caption to its image: it has the same label, and is a positive of embedding i.
            cluster_embeddings: (B, m), what the mixture clusters in place of the embeddings.
            learn: whether mixture and memory learn from the batch in train mode.

        Raises:
            ValueError: shapes do not fit, or embeddings are not finite. Nothing has changed then.
        """
        if not isinstance(embeddings, Tensor):
            raise ValueError(f"embeddings must be a tensor (B, d), got {type(embeddings).__name__}")
        if self.training and getattr(self, "_is_replica", False):
            raise RuntimeError(
                "the loss is in a replica of nn.DataParallel, whose updates would be lost: call the loss outside, "
                "on the gathered embeddings, or use DistributedDataParallel"
            )
        with full_precision(embeddings.device):
            embeddings = at_least_float32(embeddings)
            ref_emb = None if ref_emb is None else at_least_float32(ref_emb)
            if labels is not None or indices_tuple is not None:
                embeddings, ref_emb = self._lengthened(embeddings, ref_emb)
                if indices_tuple is None and self.miner is not None:
                    indices_tuple = self.miner(embeddings, labels, ref_emb, ref_labels)
                return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            features = None if cluster_embeddings is None else at_least_float32(cluster_embeddings).detach()
            batch = Batch(embeddings, features, ref_emb, ref_labels)
            with restored_after_errors(self), together(embeddings.device, enabled=self.training):
                return self._on_clusters(batch, learn=learn)

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Terms:
        """The terms of the wrapped loss, its regularization included, in the form that reducers take."""
        terms = self.loss.compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        self.loss.add_embedding_regularization_to_loss_dict(terms, embeddings)
        return terms

    def _on_clusters(self, batch: Batch, *, learn: bool) -> Tensor:
        """The loss on pseudo-labels."""
        batch.check_shapes(self.mixture.n_features)
        if self.memory is not None:
            self.memory.check(batch.embeddings, batch.features)
        if self.mixture.means.device != batch.embeddings.device:
            self.to(batch.embeddings.device)
        finite, n_bad = batch.finite_part()
        if n_bad and self.nonfinite == "raise":
            raise ValueError(
                f"embeddings must be finite, but {n_bad} rows hold NaN or infinity (nonfinite='skip' ignores them)"
            )
        past = None if self.memory is None or batch.ref_emb is not None else self.memory.content
        learn = learn and self.training
        if learn:
            exchange = Exchange(finite.clustered, again=self._comes_again(finite))
            learn = not exchange.again
            if exchange.again:
                past = self._last.past
            else:
                self._learn(finite, exchange)
                self._last = LastBatch(finite.clustered.clone(), past)
        self._statistics = LossStatistics(churn=self._statistics.churn)
        if not self._is_warm or len(finite.embeddings) == 0:
            return self.reducer(self.loss.zero_losses(), finite.embeddings, None)
        return self._reduced(finite, past, learn=learn)

    def _reduced(self, batch: Batch, past: tuple[Tensor, Tensor] | None, *, learn: bool) -> Tensor:
        """The loss on the mixture's labels, with the rows of a memory as further positives and negatives."""
        features, ref_labels = self._features(batch.clustered), batch.ref_labels
        embeddings, ref_emb = self._lengthened(batch.embeddings, batch.ref_emb)
        labels, confidence = _assign(self.mixture, features)
        if past is not None:
            ref_emb = torch.cat([embeddings, past[0].to(embeddings)])
            ref_labels = torch.cat([labels, self.mixture.predict(self._features(past[1]))])
        elif batch.is_paired:
            # A copy: where both are one tensor, pytorch-metric-learning takes row i for the anchor itself.
            ref_labels = labels.clone()
        tuples = None if self.miner is None else self.miner(embeddings, labels, ref_emb, ref_labels)
        if past is not None:
            tuples = get_all_pairs_indices(labels, ref_labels) if tuples is None else tuples
            tuples = _without_self(tuples)
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        terms = self.compute_loss(embeddings, labels, tuples, ref_emb, ref_labels)
        if self.weights is not None:
            terms = weigh_anchors(terms, self.weights(features, learn=learn))
        seen = labels if past is None else ref_labels
        self._statistics = LossStatistics(seen, confidence, count_terms(terms), self._statistics.churn)
        return self.reducer(terms, embeddings, labels)

    # ---------------------------------------------------------------- the mixture

    def end_epoch(self, data: Tensor | np.ndarray | Iterable[Any] | None = None) -> float:
        """Fit the mixture anew, for instance at the end of an epoch; clusters keep their numbers.

        Args:
            data: what to fit to: embeddings (N, d), or an iterable of batches of embeddings that can be iterated again;
                of several processes, each gives its own part. None for the memory.

        Returns:
            The churn, which is the share of the points whose cluster changed.
        """
        with together(self.mixture.means.device, enabled=self.mixture.distributed):
            churn = refit_mixture(self.mixture, self._fitted_to(data))
        self._statistics = replace(self._statistics, churn=churn)
        return churn

    def _fitted_to(self, data: Tensor | np.ndarray | Iterable[Any] | None) -> Any:
        """What to fit to at the end of an epoch: the data given, or this process's part of the memory."""
        if data is None:
            content = None if self.memory is None else self.memory.content
            if content is None or len(content[0]) < self.mixture.n_components:
                raise RuntimeError(
                    f"a memory of at least n_components={self.mixture.n_components} rows is needed to fit to, but "
                    f"memory_size is {0 if self.memory is None else self.memory.size} and "
                    f"{0 if content is None else len(content[0])} rows were seen: give data"
                )
            return share(self._features(content[1]))
        return normalized_data(data) if self.normalize else data

    def predict(self, embeddings: Tensor) -> Tensor:
        """The clusters (n,) of what is clustered, (n, m)."""
        return self.mixture.predict(self._features(embeddings))

    def cluster_weights(self, embeddings: Tensor) -> Tensor:
        """Weights (n,) with mean one, for other losses: those of `weights`, or 1/u; ones while the mixture warms up.

        Args:
            embeddings: what is clustered: (n, m).
        """
        if not self._is_warm:
            return torch.ones(len(embeddings), device=embeddings.device)
        return (self.weights or ClusterWeights(self.mixture))(self._features(embeddings))

    def extra_repr(self) -> str:
        """The settings that its parts do not show."""
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"refit={self.refit!r}, normalize={self.normalize}, nonfinite={self.nonfinite!r}{weights}"

    @property
    def statistics(self) -> dict[str, float]:
        """Of the last call without labels; cheap enough to log every step. See `LossStatistics.read`."""
        return self._statistics.read()

    @property
    def _is_warm(self) -> bool:
        return bool(self.mixture.fitted) and not bool(self.mixture.running.n_waiting)

    def _features(self, rows: Tensor) -> Tensor:
        """Rows as the mixture takes them."""
        return unit_rows(rows.detach()) if self.normalize else at_least_float32(rows.detach())

    def _lengthened(self, embeddings: Tensor, ref_emb: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both with no rows so short that a distance that divides by their norm has no bounded gradient."""
        if not self.distance.normalize_embeddings:
            return embeddings, ref_emb
        return lengthened(embeddings), None if ref_emb is None else lengthened(ref_emb)

    def _comes_again(self, batch: Batch) -> bool:
        """Whether a batch was learned by an earlier call of this step; of repetitions in the warm-up all count."""
        return is_recomputation() or (self._is_warm and self._last.comes_again_as(batch.clustered))

    def _learn(self, batch: Batch, exchange: Exchange) -> None:
        """Learn from the batch."""
        if is_active() and self.refit != "external" and not self.mixture.distributed:
            raise RuntimeError("the mixture would differ between processes: make it with distributed=True")
        rows = exchange.join(batch.clustered)
        features = self._features(rows)
        enough = len(features) >= world_size()
        if self.refit == "streaming" and enough:
            self._stream(features)
        if self.memory is not None:
            embeddings = rows if batch.features is None else exchange.join(batch.embeddings.detach())
            self.memory.push(embeddings, None if batch.features is None else rows)
        self.steps = self.steps + 1
        if isinstance(self.refit, int) and self._is_due(self.refit):
            self.end_epoch()

    def _stream(self, features: Tensor) -> None:
        """Learn from the rows of a batch, and note how many changed their cluster."""
        old = _assign(self.mixture, features)[0] if self._is_warm else None
        self.mixture.partial_fit(share(features))
        if old is not None:
            churn = (old != _assign(self.mixture, features)[0]).double().mean()
            self._statistics = replace(self._statistics, churn=churn)

    def _is_due(self, interval: int) -> bool:
        """Whether a refit to the memory is due."""
        assert self.memory is not None
        if self._is_warm:
            return int(self.steps) % interval == 0 and len(self.memory) >= self.mixture.n_components
        return len(self.memory) >= min(self.memory.size, FIRST_FIT_ROWS * self.mixture.n_components)


@torch.no_grad()
def _assign(mixture: StudentTMixture, features: Tensor) -> tuple[Tensor, Tensor]:
    """The component with the largest responsibility for each row, and that responsibility: both (n,)."""
    confidence, labels = mixture(features).max(1)
    return labels, confidence


def _without_self(tuples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Triplets or pairs whose positive is not the anchor, which row i of the references is for anchor i."""
    anchor, positive = tuples[0], tuples[1]
    other = anchor != positive
    if len(tuples) == 3:
        return anchor[other], positive[other], tuples[2][other]
    return anchor[other], positive[other], tuples[2], tuples[3]


def _mixture(mixture: StudentTMixture | None, n_components: int | None, embedding_size: int | None) -> StudentTMixture:
    if isinstance(mixture, StudentTMixture):
        if n_components is not None or embedding_size is not None:
            raise ValueError("n_components and embedding_size are those of the mixture given: leave them out")
        return mixture
    if mixture is not None or n_components is None or embedding_size is None:
        raise ValueError(
            f"mixture must be a StudentTMixture, got {type(mixture).__name__}; without one, give n_components and "
            f"embedding_size (got {n_components} and {embedding_size})"
        )
    return StudentTMixture(n_components, embedding_size, step_size=DRIFT_RATE, distributed=True, generator=0)


def _policy(refit: RefitPolicy, memory_size: int, n_components: int) -> RefitPolicy:
    if isinstance(refit, int) and not isinstance(refit, bool) and refit > 0:
        if memory_size < n_components:
            raise ValueError(
                f"refit={refit} fits to the memory: memory_size must be at least n_components={n_components}, got "
                f"{memory_size}"
            )
    elif refit not in ("streaming", "external"):
        raise ValueError(f"refit must be 'streaming', 'external' or a number of steps, got {refit!r}")
    return refit


def _weights(weights: Weighting | Frequency | ClusterWeights | None, mixture: StudentTMixture) -> ClusterWeights | None:
    if weights is None or isinstance(weights, ClusterWeights):
        if weights is not None and weights.mixture is not mixture:
            raise ValueError("weights are a ClusterWeights of another mixture than the loss has")
        return weights
    if weights in ("outlier", "confidence"):
        return ClusterWeights(mixture, outlier=weights == "outlier", confidence=weights == "confidence")
    if weights in FREQUENCIES:
        return ClusterWeights(mixture, mass=weights, outlier=False)  # type: ignore[arg-type]
    if callable(weights):
        return ClusterWeights(mixture, mass=weights, outlier=False)
    names = ", ".join(map(repr, FREQUENCIES))
    raise ValueError(
        "weights must be a ClusterWeights, a function of the clusters' sizes, or one of 'outlier', 'confidence', "
        f"{names}, got {weights!r}"
    )
