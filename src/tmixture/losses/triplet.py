"""`ClusterTripletLoss`: the metric loss of CXR-CML."""

from __future__ import annotations

from typing import Literal

from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BaseMiner, BatchHardMiner
from pytorch_metric_learning.reducers import BaseReducer
from pytorch_metric_learning.regularizers import BaseRegularizer

from tmixture import StudentTMixture
from tmixture.losses.cluster_loss import ClusterLoss
from tmixture.losses.distances import EuclideanDistance
from tmixture.losses.miners import SemiHardMiner
from tmixture.losses.settings import CALLS_PER_REFIT, WINDOW_ROWS, RefitPolicy, Weighting
from tmixture.losses.weights import ClusterWeights, Frequency


class ClusterTripletLoss(ClusterLoss):
    """Triplet loss with the clusters of a Student-t mixture as labels: max(0, d(a, p) − d(a, n) + margin).

    Anchor a and positive p are from one cluster, negative n is from another. By default the mean over the semi-hard
    triplets is taken. Eq. 3 of the CXR-CML paper, the sum over all triplets, is `miner=None, reducer=SumReducer()`.

    Args:
        mixture: a `StudentTMixture`, fitted or not; or None, with `n_components` and `embedding_size`.
        margin: in units of the distance.
        miner: "semihard" (one triplet per pair of anchor and positive, see `SemiHardMiner`), "hard" (one per anchor,
            with the farthest positive and the nearest negative), a miner of pytorch-metric-learning, or None for all
            triplets, of which there are O(B³).
        distance: a distance of pytorch-metric-learning; Euclidean on L2-normalised embeddings if None.
        reducer: a reducer of pytorch-metric-learning; the mean over terms that are not zero if None.
        embedding_regularizer: a regularizer of pytorch-metric-learning.
        embedding_reg_weight: its weight.
        n_components: as all further arguments, see `ClusterLoss`.

    Examples:
        >>> loss_fn = ClusterTripletLoss(n_components=40, embedding_size=512)
        >>> loss = clip_loss + loss_fn(image_embeddings)
    """

    def __init__(
        self,
        mixture: StudentTMixture | None = None,
        *,
        margin: float = 0.3,
        miner: BaseMiner | Literal["semihard", "hard"] | None = "semihard",
        distance: BaseDistance | None = None,
        reducer: BaseReducer | None = None,
        embedding_regularizer: BaseRegularizer | None = None,
        embedding_reg_weight: float = 1.0,
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
        distance = EuclideanDistance() if distance is None else distance
        super().__init__(
            mixture,
            TripletMarginLoss(
                margin=margin,
                distance=distance,
                reducer=reducer,
                embedding_regularizer=embedding_regularizer,
                embedding_reg_weight=embedding_reg_weight,
            ),
            _miner(miner, margin, distance),
            n_components=n_components,
            embedding_size=embedding_size,
            refit=refit,
            window_size=window_size,
            memory_size=memory_size,
            weights=weights,
            normalize=normalize,
            shuffle=shuffle,
            nonfinite=nonfinite,
        )


def _miner(
    miner: BaseMiner | Literal["semihard", "hard"] | None, margin: float, distance: BaseDistance
) -> BaseMiner | None:
    if miner is None or isinstance(miner, BaseMiner):
        return miner
    if miner == "semihard":
        return SemiHardMiner(margin, distance)
    if miner == "hard":
        return BatchHardMiner(distance=distance)
    raise ValueError(f"miner must be 'semihard', 'hard', a miner of pytorch-metric-learning or None, got {miner!r}")
