"""Metric losses on the clusters that a Student-t mixture finds, built on pytorch-metric-learning."""

from tmixture.losses.cluster_loss import ClusterLoss
from tmixture.losses.comembership import CoMembershipLoss
from tmixture.losses.contrastive import ContrastiveLoss
from tmixture.losses.memory import EmbeddingMemory
from tmixture.losses.miners import SemiHardMiner
from tmixture.losses.sampler import ClusterBalancedSampler
from tmixture.losses.triplet import ClusterTripletLoss
from tmixture.losses.weights import ClusterWeights, LabelWeights, effective_number, inverse, inverse_log

__all__ = [
    "ClusterBalancedSampler",
    "ClusterLoss",
    "ClusterTripletLoss",
    "ClusterWeights",
    "CoMembershipLoss",
    "ContrastiveLoss",
    "EmbeddingMemory",
    "LabelWeights",
    "SemiHardMiner",
    "effective_number",
    "inverse",
    "inverse_log",
]
