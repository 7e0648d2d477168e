"""Two labels a class: scikit-learn's digits, made long-tailed, with and without the cluster loss.

An encoder learns from all images without labels (SimCLR) and from the few labelled ones. The cluster loss lets the
labels reach the other images: labelled rows keep their class in the mixture, and every other row is pulled towards the
rows that it may belong with. Takes under a minute; needs the extra `sklearn`.

    python examples/few_labels.py --labels 2
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from pytorch_metric_learning.losses import SupConLoss
from sklearn.datasets import load_digits
from torch import Tensor, nn

from tmixture.losses import ClusterLoss, CoMembershipLoss


def long_tailed(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 64) and labels to train on, 110 … 5 of a class, and to test with, 64 or 65 of each."""
    digits, rng = load_digits(), np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(digits.target == label)) for label in range(10)]
    train = np.concatenate([r[:n] for r, n in zip(rows, np.geomspace(110, 5, 10).astype(int))])
    test = np.concatenate([r[110:175] for r in rows])
    x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target)
    return x[train], y[train], x[test], y[test]


def view(x: Tensor) -> Tensor:
    """Images brightened or darkened, noisy, and moved sideways by up to a pixel."""
    moved = torch.stack([image.roll(int(torch.randint(-1, 2, ()))) for image in x])
    return moved * (0.7 + 0.6 * torch.rand(len(x), 1)) + 0.1 * torch.randn_like(x)


def train(x: Tensor, known: Tensor, *, seed: int, cluster_loss: ClusterLoss | None, steps: int = 400) -> nn.Module:
    """An encoder, from images (n, 64) and their labels (n,), −1 where unknown."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 32))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    contrastive, supervised = SupConLoss(0.2), SupConLoss(0.2)
    labelled = (known >= 0).nonzero()[:, 0].repeat(2)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,))
        one, two, few = encoder(view(x[rows])), encoder(view(x[rows])), encoder(view(x[labelled]))
        loss = contrastive(torch.cat([one, two]), torch.arange(128).repeat(2)) + supervised(few, known[labelled])
        if cluster_loss is not None:
            labels = torch.cat([known[rows], known[labelled]])
            loss = loss + cluster_loss(torch.cat([one, few]), labels)  # <- the added line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def accuracy(encoder: nn.Module, x: Tensor, y: Tensor, references: Tensor, labels: Tensor) -> float:
    """Of the nearest labelled image."""
    queries, references = (nn.functional.normalize(encoder(part), dim=1) for part in (x, references))
    return float((labels[(queries @ references.T).argmax(1)] == y).double().mean())


def main() -> None:
    """Train with and without the cluster loss from the same weights, and print the accuracy of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=2, help="labelled images of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        x, y, test_x, test_y = long_tailed(seed)
        few = torch.cat([(y == label).nonzero()[: arguments.labels, 0] for label in range(10)])
        known = torch.full_like(y, -1).index_copy(0, few, y[few])
        for name in ("without", "with"):
            cluster_loss = ClusterLoss(loss=CoMembershipLoss(), n_components=10, embedding_size=32)
            added = None if name == "without" else cluster_loss
            encoder = train(x, known, seed=seed, cluster_loss=added, steps=arguments.steps)
            print(f"seed {seed}, {name} the cluster loss: {accuracy(encoder, test_x, test_y, x[few], y[few]):.1%}")


if __name__ == "__main__":
    main()
