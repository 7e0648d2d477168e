"""The cluster stage of an arm: pseudo-labels and sample weights from a mixture, and the metric loss on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cxr.training.arm import Arm
from cxr.training.released import ReleasedClusterLoss
from cxr.training.stage import Stage
from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, ClusterTripletLoss, ClusterWeights, inverse

# A sample of a rare cluster, or an outlier, counts at most so many times as much as the median sample.
WEIGHT_LIMIT = 5.0

# Over how many of the latest rows the weights have a mean of one.
RECENT_ROWS = 1024


class ClusterStage(Stage):
    """Sample weights and a metric loss from the clusters of a mixture.

    The mixture is fitted to the training part before the first epoch (the paper's 40 components cannot be fitted to a
    batch of 32), and from then on to the latest rows, every few batches: those from an epoch ago fit no cluster any
    more, as the features move, and then every sample looks like an outlier. Sample weights have a mean of one over the
    latest batches, as label weights have over the training part: a batch of rare samples counts for more.

    Args:
        arm: what to do with the clusters.
        embedding_size: d of the model's embeddings.
        n_components: of the mixture.
        dof: its degrees of freedom.
        seed: of its initialisation.
    """

    def __init__(self, arm: Arm, embedding_size: int, *, n_components: int, dof: float, seed: int) -> None:
        super().__init__()
        self.arm = arm
        width = 2 * embedding_size if arm.features == "joint" else embedding_size
        self.metric = self.metric_loss(width, n_components, dof, seed)
        self.weights = ClusterWeights(
            self.mixture, mass=inverse(arm.mass_exponent), outlier=True, limit=WEIGHT_LIMIT, recent=RECENT_ROWS
        )
        self.released = ReleasedClusterLoss(seed=seed)

    def metric_loss(self, width: int, n_components: int, dof: float, seed: int) -> ClusterLoss:
        """The loss on the clusters of a mixture of these arguments."""
        mixture = StudentTMixture(n_components, width, dof=dof, generator=seed)
        return ClusterTripletLoss(mixture, margin=self.arm.margin, shuffle=self.arm.shuffle_labels)

    @property
    def mixture(self) -> StudentTMixture:
        """The mixture."""
        return self.metric.mixture

    def forward(self, images: Tensor, texts: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B,) of the contrastive loss's terms, and the metric loss.

        Args:
            images: embeddings (B, d).
            texts: of their captions (B, d).
            known: the rarest finding (B,) of each image whose labels are known, -1 elsewhere. CXR-CML does not ask.
        """
        ones = torch.ones(len(images), device=images.device)
        if self.arm.released:
            return ones, self.released(images, texts)
        features = self.features(images, texts).detach()
        metric = self.metric(images, cluster_embeddings=features)
        weights = self.weights(features) if self.arm.cluster_weights else ones
        if self.arm.shuffle_weights:
            weights = weights[torch.randperm(len(weights))]
        return weights, metric

    def features(self, images: Tensor, texts: Tensor) -> Tensor:
        """What the mixture clusters: unit-norm embeddings of images, of texts, or both side by side."""
        images, texts = normalize(images.float(), dim=1), normalize(texts.float(), dim=1)
        if self.arm.features == "joint":
            return torch.cat([images, texts], dim=1) / 2**0.5
        return images if self.arm.features == "image" else texts

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Fit the mixture to embeddings (n, d) of the training part."""
        if not self.arm.released:
            self.metric.end_epoch(self.features(images, texts))

    @property
    def statistics(self) -> dict[str, float]:
        """Of the clusters in the last batch."""
        if self.arm.released:
            return {}
        return {f"cluster_{name}": value for name, value in self.metric.statistics.items() if name != "churn"}

    def predict(self, images: Tensor, texts: Tensor) -> npt.NDArray[np.int64]:
        """The component of each row of embeddings (n, d); -1 where there is no mixture."""
        if not self.mixture.is_fitted:
            return super().predict(images, texts)
        return self.mixture.predict(self.features(images, texts)).cpu().numpy()
