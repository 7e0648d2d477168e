"""`ClusterLoss`: any loss of pytorch-metric-learning on labels that a mixture finds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
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
from tmixture.host import number, set_number
from tmixture.losses import settings
from tmixture.losses.assignment import Assignment
from tmixture.losses.comembership import CoMembershipLoss
from tmixture.losses.distances import EuclideanDistance
from tmixture.losses.health import complaint, effective_rank, readier
from tmixture.losses.memory import EmbeddingMemory, Remembered
from tmixture.losses.refit import refit_mixture
from tmixture.losses.repeats import LastBatch, is_recomputation
from tmixture.losses.restore import restored_after_errors
from tmixture.losses.rows import Batch, at_least_float32, lengthened, normalized_data, partly_known, unit_rows
from tmixture.losses.settings import CALLS_PER_REFIT, WINDOW_ROWS, RefitPolicy, Weighting
from tmixture.losses.sharing import Exchange, share
from tmixture.losses.statistics import LossStatistics
from tmixture.losses.terms import Terms, count_terms, share_at_margin, weigh_anchors
from tmixture.losses.trial import check_combination
from tmixture.losses.weights import ClusterWeights, Frequency
from tmixture.notices import warn
from tmixture.precision import full_precision

# A mixture is first fitted to a memory when it holds this many rows per component, or when it is full.
FIRST_FIT_ROWS = 10
# In how many of the newest rows a collapse of the embeddings is looked for.
NEWEST_ROWS = 256


class ClusterLoss(BaseMetricLossFunction):
    """A loss of pytorch-metric-learning in which the labels come from a Student-t mixture.

    Like batch normalisation it learns by being called. In train mode a call first shows the mixture the detached
    embeddings of the batch, then asks it for labels; in eval mode the mixture stays as it is. Until the mixture has
    seen enough (10 rows per component), the loss is a zero with a graph. With refits at an interval it then begins as
    softly as the clusters become stable: it is multiplied by the `readiness` of `statistics`, a running average of how
    few rows change their cluster at a refit.

    Labels that are known help most: `forward(embeddings, labels)` with −1 where unknown. Known rows keep their class in
    the loss, in the memory and in every fit of the mixture, whose component k is class k (or see its
    `component_labels`). With labels that are all known, or with an `indices_tuple`, it is the wrapped loss, and the
    mixture takes no part: no update, no weights, no memory. Labels without an `indices_tuple` go through the miner, if
    there is one.

    A collapse of the clusters or of the embeddings is noticed at refits, and gives one warning of each kind.

    A batch that comes again within a step, as in gradient accumulation or in activation checkpointing, is learned once:
    more than half of its rows are bit for bit those of the last call, or the call is part of a backward pass. Where the
    rows change, say `learn=False`. An error leaves all state as it was.

    Everything is computed in at least float32, whatever the embeddings' dtype and whatever autocast and
    `torch.set_float32_matmul_precision` say.

    In several processes a train-mode call is a collective operation, and the mixtures stay identical: each process
    brings its own rows, of which one at least is of unknown class, or, in a `DistributedLossWrapper`, all of them. The
    mixture must have been made with `distributed=True`, as one made here is. The memory holds the rows of all
    processes. An error in one of them is one in all: the others raise a `RuntimeError` that quotes it.

    Args:
        mixture: a `StudentTMixture`, fitted or not; or None, with `n_components` and `embedding_size`.
        loss: any loss of pytorch-metric-learning that takes labels or tuples. Its distance, reducer and regularizer are
            this one's. It is tried on a few rows, and refused if it cannot do what is asked.
        miner: any miner of pytorch-metric-learning, or None for all pairs or triplets.
        n_components: number of clusters of a mixture to be made here.
        embedding_size: its number of features.
        refit: how the mixture learns in train mode.
            An integer n: by a new fit to recent rows every n calls, the first one as soon as there are 10 rows per
            component or the window is full. Clusters keep their numbers.
            "streaming": from every batch, by `mixture.partial_fit`; for embeddings that rest.
            "external": not by itself; fit it from outside, or by `end_epoch`.
        window_size: of how many recent rows these are.
        memory_size: how many recent embeddings serve as further positives and negatives. They are not used together
            with `ref_emb`.
        weights: of the anchors' terms: "outlier" (1/u), "confidence" (r), "inverse", "inverse_log" or
            "effective_number" (of the cluster's mass), or a function of that; or a `ClusterWeights` of the same
            mixture.
        normalize: whether the mixture clusters L2-normalised embeddings.
        shuffle: whether labels, and all that the mixture says, go to the rows of a batch in random order: a control
            that differs in nothing else.
        nonfinite: what to do about embeddings with NaN or infinity: "raise" a ValueError before anything changes, or
            "skip" these rows.

    Examples:
        >>> loss_fn = ClusterLoss(loss=SupConLoss(), n_components=40, embedding_size=512)
        >>> loss = loss_fn(torch.randn(32, 512, requires_grad=True))
    """

    distance: Any
    reducer: Any
    mixture: StudentTMixture
    memory_size: int
    memory: EmbeddingMemory | None
    weights: ClusterWeights | None
    __call__: Callable[..., Tensor]
    steps: Tensor
    readiness: Tensor
    widest: Tensor

    def __init__(
        self,
        mixture: StudentTMixture | None = None,
        loss: BaseMetricLossFunction | None = None,
        miner: BaseMiner | None = None,
        *,
        n_components: int | None = None,
        embedding_size: int | None = None,
        refit: RefitPolicy = CALLS_PER_REFIT,
        window_size: int = WINDOW_ROWS,
        memory_size: int = 0,
        weights: Weighting | Frequency | ClusterWeights | None = None,
        normalize: bool = True,
        shuffle: bool = False,
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
        self.mixture = settings.mixture(mixture, n_components, embedding_size)
        self.memory_size = settings.rows(memory_size, "memory_size")
        n_rows = memory_size if isinstance(refit, str) else max(memory_size, settings.rows(window_size, "window_size"))
        self.refit = settings.policy(refit, n_rows, self.mixture.n_components)
        self.memory = EmbeddingMemory(n_rows, self.mixture.n_features) if n_rows else None
        self.weights = settings.weights(weights, self.mixture)
        self.normalize = normalize
        self.shuffle = shuffle
        self.nonfinite = nonfinite
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        unready = isinstance(refit, int) and not self.mixture.is_fitted
        self.register_buffer("readiness", torch.tensor(0.0 if unready else 1.0))
        self.register_buffer("widest", torch.zeros(()))
        check_combination(
            loss,
            miner,
            self.mixture.n_components,
            self.mixture.n_features,
            memory=memory_size > 0,
            weights=self.weights is not None,
        )
        self._statistics = LossStatistics()
        self._last = LastBatch()
        self._complaints: set[str] = set()

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
            labels: (B,), −1 where unknown; if all are known, the mixture takes no part.
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
            known = partly_known(labels, embeddings, self.mixture.classes)
            if indices_tuple is not None or (labels is not None and known is None):
                embeddings, ref_emb = self._lengthened(embeddings, ref_emb)
                if indices_tuple is None and self.miner is not None:
                    indices_tuple = self.miner(embeddings, labels, ref_emb, ref_labels)
                return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)
            features = None if cluster_embeddings is None else at_least_float32(cluster_embeddings).detach()
            batch = Batch(embeddings, features, ref_emb, ref_labels, known)
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
        past = None if past is None or not self.memory_size else past.last(self.memory_size)
        learn = learn and self.training
        if learn:
            exchange = Exchange(finite.clustered, again=self._comes_again(finite))
            learn = not exchange.again
            if exchange.again:
                past = self._last.past
            else:
                self._learn(finite, exchange)
                self._last = LastBatch(finite.clustered.clone(), past)
        self._statistics = LossStatistics(churn=self._statistics.churn, readiness=self.readiness)
        if not self._is_warm or len(finite.embeddings) == 0:
            return self.reducer(self.loss.zero_losses(), finite.embeddings, None)
        return self.readiness * self._reduced(finite, past, learn=learn)

    def _reduced(self, batch: Batch, past: Remembered | None, *, learn: bool) -> Tensor:
        """The loss on what the mixture says, with the rows of a memory as further positives and negatives."""
        features = self._features(batch.clustered)
        embeddings, ref_emb = self._lengthened(batch.embeddings, batch.ref_emb)
        own = Assignment.of(self.mixture, features, batch.known)
        own = own.shuffled() if self.shuffle else own
        refs = own
        if past is not None:
            ref_emb = torch.cat([embeddings, past.embeddings.to(embeddings)])
            refs = own.followed_by(Assignment.of(self.mixture, self._features(past.clustered), past.known))
        elif batch.ref_labels is not None:
            refs = Assignment.of_labels(batch.ref_labels, own)
        elif batch.is_paired:
            refs = own.copy()
        references = embeddings if ref_emb is None else ref_emb
        if isinstance(self.loss, CoMembershipLoss):
            terms = self._soft_terms(embeddings, own, references, refs, apart=batch.ref_emb is not None)
        else:
            terms = self._hard_terms(embeddings, own.labels, references, refs.labels, mixed=past is not None)
        if self.weights is not None:
            terms = weigh_anchors(terms, self.weights(features, learn=learn))
        margin = getattr(self.loss, "margin", None)
        self._statistics = LossStatistics(
            n_components=self.mixture.n_components,
            labels=own.labels if past is None else refs.labels,
            confidence=own.confidence,
            embeddings=embeddings.detach(),
            at_margin=0.0 if margin is None else share_at_margin(terms, margin),
            readiness=self.readiness,
            tuples=count_terms(terms),
            churn=self._statistics.churn,
        )
        return self.reducer(terms, embeddings, own.labels)

    def _hard_terms(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, *, mixed: bool
    ) -> Terms:
        """The terms on labels; `mixed` says that the references are the batch and further rows."""
        distance = self.loss.distance
        with distance.once() if isinstance(distance, EuclideanDistance) else nullcontext():
            tuples = None if self.miner is None else self.miner(embeddings, labels, ref_emb, ref_labels)
            if mixed:
                tuples = get_all_pairs_indices(labels, ref_labels) if tuples is None else tuples
                tuples = _without_self(tuples)
            return self.compute_loss(embeddings, labels, tuples, ref_emb, ref_labels)

    def _soft_terms(
        self, embeddings: Tensor, own: Assignment, ref_emb: Tensor, refs: Assignment, *, apart: bool
    ) -> Terms:
        """The terms on memberships."""
        assert isinstance(self.loss, CoMembershipLoss)
        p, q = own.memberships(self.loss), refs.memberships(self.loss)
        terms = self.loss.soft_terms(embeddings, p.to(embeddings), ref_emb, q.to(embeddings), apart=apart)
        self.loss.add_embedding_regularization_to_loss_dict(terms, embeddings)
        return terms

    # ---------------------------------------------------------------- the mixture

    def end_epoch(self, data: Tensor | np.ndarray | Iterable[Any] | None = None) -> float:
        """Fit the mixture anew, for instance at the end of an epoch; clusters keep their numbers.

        Before the first step, it gives the loss a mixture that is fitted: then it begins at once.

        Args:
            data: what to fit to: embeddings (N, d), or an iterable of batches of embeddings that can be iterated again;
                of several processes, each gives its own part. None for the memory.

        Returns:
            The churn, which is the share of the points whose cluster changed.
        """
        with together(self.mixture.means.device, enabled=self.mixture.distributed):
            if data is None:
                churn = self._refit()
            else:
                is_first = not self.mixture.is_fitted
                churn = refit_mixture(self.mixture, normalized_data(data) if self.normalize else data)
                self.readiness = torch.ones_like(self.readiness) if is_first else self.readiness
        self._statistics = replace(self._statistics, churn=churn)
        return churn

    def _refit(self) -> float:
        """Fit to the memory, and return the churn."""
        content = None if self.memory is None else self.memory.content
        size = 0 if self.memory is None else self.memory.size
        n = 0 if content is None else len(content.known)
        if content is None or n < self.mixture.n_components:
            raise RuntimeError(
                f"a memory of at least n_components={self.mixture.n_components} rows is needed to fit to, but it has "
                f"room for {size} rows, and {n} were seen: give data"
            )
        again, features = self.mixture.is_fitted, self._features(content.clustered)
        known = share(content.known) if (content.known >= 0).any() else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of single fits: what matters is said below, once
            churn = refit_mixture(self.mixture, share(features), known)
        if again:
            self.readiness = readier(self.readiness, churn)
        self.widest = torch.maximum(self.widest, effective_rank(features).to(self.widest))
        labels = self.mixture.predict(features)
        found = complaint(features[-NEWEST_ROWS:], labels, self.mixture.n_components, float(self.widest))
        if found and found[:20] not in self._complaints:
            self._complaints.add(found[:20])
            warn(found)
        return churn

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
        shuffle = ", shuffle=True" if self.shuffle else ""
        return (
            f"refit={self.refit!r}, memory_size={self.memory_size}, normalize={self.normalize}, "
            f"nonfinite={self.nonfinite!r}{weights}{shuffle}"
        )

    @property
    def statistics(self) -> dict[str, float]:
        """Of the last call without labels; cheap enough to log every step. See `LossStatistics.read`."""
        return self._statistics.read()

    @property
    def _is_warm(self) -> bool:
        return self.mixture.is_fitted and self.mixture.running.waiting is None

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
        known = None if batch.known is None else exchange.join(batch.known[:, None])[:, 0]
        enough = len(features) >= world_size()
        if self.refit == "streaming" and enough:
            self._stream(features, known)
        if self.memory is not None:
            embeddings = rows if batch.features is None else exchange.join(batch.embeddings.detach())
            self.memory.push(embeddings, None if batch.features is None else rows, known)
        set_number(self, "steps", number(self, "steps") + 1)
        if isinstance(self.refit, int) and self._is_due(self.refit):
            self.end_epoch()

    def _stream(self, features: Tensor, known: Tensor | None) -> None:
        """Learn from the rows of a batch, and note how many changed their cluster."""
        old = self.mixture.predict(features) if self._is_warm else None
        self.mixture.partial_fit(share(features), labels=None if known is None else share(known))
        if old is not None:
            churn = (old != self.mixture.predict(features)).double().mean()
            self._statistics = replace(self._statistics, churn=churn)

    def _is_due(self, interval: int) -> bool:
        """Whether a refit to the memory is due."""
        assert self.memory is not None
        enough = len(self.memory) >= min(self.memory.size, FIRST_FIT_ROWS * self.mixture.n_components)
        return enough and (not self._is_warm or number(self, "steps") % interval == 0)


def _without_self(tuples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Triplets or pairs whose positive is not the anchor, which row i of the references is for anchor i."""
    anchor, positive = tuples[0], tuples[1]
    other = anchor != positive
    if len(tuples) == 3:
        return anchor[other], positive[other], tuples[2][other]
    return anchor[other], positive[other], tuples[2], tuples[3]
