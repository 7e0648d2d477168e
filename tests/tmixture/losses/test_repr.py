"""What a printed network and its parts say."""

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import nn

from tmixture import StudentTMixture
from tmixture.losses import (
    ClusterBalancedSampler,
    ClusterLoss,
    ClusterTripletLoss,
    ClusterWeights,
    LabelWeights,
    inverse,
)


def test_a_printed_network_shows_the_settings_of_its_loss():
    loss = ClusterTripletLoss(n_components=3, embedding_size=8, memory_size=2000, weights="outlier", margin=0.25)
    text = repr(nn.ModuleDict({"encoder": nn.Linear(4, 8), "loss": loss}))
    for part in (
        "(loss): ClusterTripletLoss(",
        "refit=10, memory_size=2000, normalize=True, nonfinite='raise', "
        "weights=ClusterWeights(mass=None, outlier=True, confidence=False)",
        "margin=0.25",
        "(mixture): StudentTMixture(n_components=3, n_features=8, covariance_type='diag', dof=4, not fitted)",
        "(memory): EmbeddingMemory(0 of 2000 rows)",
    ):
        assert part in text
    assert "weights=" not in repr(ClusterLoss(loss=SupConLoss(), n_components=3, embedding_size=8))


@pytest.mark.parametrize(
    ("mass", "shown"), [("inverse", "inverse(exponent=1.0)"), (inverse(0.5), "inverse(exponent=0.5)"), (None, "None")]
)
def test_weights(mass, shown):
    weights = ClusterWeights(StudentTMixture(2, 2), mass=mass, confidence=0.4)
    assert repr(weights) == f"ClusterWeights(mass={shown}, outlier=True, confidence=0.4)"


def test_weights_of_labels_and_a_sampler():
    labels = torch.tensor([0, 0, 0, 0, 1])
    # n^(−1/2) gives 0.5 and 1, whose mean over the samples is 0.6.
    assert repr(LabelWeights(labels)) == "LabelWeights(2 classes, rule='max', class weights 0.833 … 1.67)"
    sampler = ClusterBalancedSampler(labels, num_replicas=2, rank=1)
    assert repr(sampler) == "ClusterBalancedSampler(5 samples in 2 clusters, exponent=1.0, 3 draws as rank 1 of 2)"
