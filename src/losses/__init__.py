"""Metric losses on the clusters that a Student-t mixture finds, built on pytorch-metric-learning."""

from losses.cluster_loss import ClusterLoss
from losses.memory import EmbeddingMemory
from losses.miners import SemiHardMiner
from losses.released import ReleasedClusterLoss
from losses.sampler import ClusterBalancedSampler
from losses.triplet import ClusterTripletLoss
from losses.weights import ClusterWeights, LabelWeights, effective_number, inverse, inverse_log

__all__ = [
    "ClusterBalancedSampler",
    "ClusterLoss",
    "ClusterTripletLoss",
    "ClusterWeights",
    "EmbeddingMemory",
    "LabelWeights",
    "ReleasedClusterLoss",
    "SemiHardMiner",
    "effective_number",
    "inverse",
    "inverse_log",
]
