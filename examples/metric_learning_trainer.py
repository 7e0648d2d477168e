"""A trainer of pytorch-metric-learning that learns without labels: from two views of each point, and from clusters.

A trainer hands its labels to every loss, and with labels a cluster loss is just the loss that it wraps:
`ClusterTrainer` calls it without them. The data are synthetic; put your dataset and your network in their place.

    python examples/metric_learning_trainer.py
"""

from __future__ import annotations

import argparse

import torch
from pytorch_metric_learning.losses import NTXentLoss
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.key_checker import KeyChecker
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tmixture.losses import ClusterTripletLoss

N_KINDS, WIDTH = 6, 20


class ClusterTrainer(MetricLossOnly):
    """`MetricLossOnly` with a second loss, "cluster_loss", that gets no labels."""

    def calculate_loss(self, curr_batch: tuple[Tensor, Tensor]) -> None:
        """Both losses of a batch; the trainer adds them up by their weights."""
        data, labels = curr_batch
        embeddings = self.compute_embeddings(data)
        self.losses["metric_loss"] = self.loss_funcs["metric_loss"](embeddings, labels)
        self.losses["cluster_loss"] = self.loss_funcs["cluster_loss"](embeddings)

    def modify_schema(self) -> None:
        """Allow for the second loss."""
        self.schema["loss_funcs"] = KeyChecker(["metric_loss", "cluster_loss"])


def two_views(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Two noisy views of each point, and as labels which point they are of."""
    views = [batch[0] + 0.5 * torch.randn_like(batch[0]) for _ in range(2)]
    return torch.cat(views), torch.arange(len(batch[0])).repeat(2)


def print_statistics(trainer: ClusterTrainer) -> None:
    """What the cluster loss tells of its clusters."""
    statistics = trainer.loss_funcs["cluster_loss"].statistics
    print(f"epoch {trainer.epoch}: " + ", ".join(f"{name} {value:.3g}" for name, value in statistics.items()))


def main() -> None:
    """Train for some epochs, and print the statistics of the clusters after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    points = 2 * torch.randn(N_KINDS, WIDTH)[torch.randint(N_KINDS, (960,))] + torch.randn(960, WIDTH)
    trunk = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 16))
    ClusterTrainer(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-3)},
        batch_size=64,
        loss_funcs={
            "metric_loss": NTXentLoss(temperature=0.2),
            "cluster_loss": ClusterTripletLoss(n_components=N_KINDS, embedding_size=16),
        },
        loss_weights={"metric_loss": 1.0, "cluster_loss": 0.5},
        dataset=TensorDataset(points),
        data_and_label_getter=two_views,
        dataloader_num_workers=0,
        end_of_epoch_hook=print_statistics,
    ).train(num_epochs=arguments.epochs)


if __name__ == "__main__":
    main()
