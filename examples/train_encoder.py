"""Train an encoder on long-tailed data, with and without the cluster loss, and draw what it sees before and after.

Ten classes, the most common 25 times as frequent as the rarest, overlap in a few directions of a space full of
heavy-tailed noise. No labels are used for training. Both encoders learn to recognise two noisy views of a point as the
same; one of them also has the line marked below. Takes about a minute; needs the extras `plot` and
`sklearn`.

    python examples/train_encoder.py --output before_after.png
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_metric_learning.losses import SupConLoss
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss

N_CLASSES, N_RARE = 10, 5
N_SIGNAL, N_NOISE, EMBEDDING_SIZE = 6, 26, 16
N_DRAWN = 1500


class LongTailedData:
    """Heavy-tailed classes whose frequencies fall by 30 % from one to the next.

    Args:
        seed: of the class centres and of the draws.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.frequencies = 0.7 ** torch.arange(N_CLASSES)
        self.centres = 3 * torch.randn(N_CLASSES, N_SIGNAL, generator=self.generator)
        width = N_SIGNAL + N_NOISE
        self.rotation = torch.linalg.qr(torch.randn(width, width, generator=self.generator)).Q

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Points (n, 32) and their classes (n,)."""
        labels = torch.multinomial(self.frequencies, n, replacement=True, generator=self.generator)
        noise = torch.randn(n, N_SIGNAL + N_NOISE, generator=self.generator)
        squares = torch.randn(n, 3, generator=self.generator).square().mean(1, keepdim=True)
        points = noise / squares.sqrt()  # Student-t with 3 degrees of freedom
        points[:, :N_SIGNAL] += self.centres[labels]
        return points @ self.rotation, labels


def train(
    encoder: nn.Module,
    points: Tensor,
    *,
    seed: int,
    added_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    steps: int = 250,
) -> nn.Module:
    """A copy of the encoder, trained without labels; `added_loss` takes the embeddings of both views."""
    encoder = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(seed)
    contrastive_loss = SupConLoss(temperature=0.2)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    pairs = torch.arange(64).repeat(2)  # as labels, they make it SimCLR's loss
    for _ in range(steps):
        batch = points[torch.randint(len(points), (64,), generator=generator)]
        first, second = (encoder(batch + 0.5 * torch.randn(batch.shape, generator=generator)) for _ in range(2))
        loss = contrastive_loss(torch.cat([first, second]), pairs)
        if added_loss is not None:
            loss = loss + added_loss(first, second)  # <- the added line
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


def weighted_cluster_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """Twice as many clusters as there are classes, four times the weight of the contrastive loss."""
    cluster_loss = ClusterTripletLoss(n_components=2 * N_CLASSES, embedding_size=EMBEDDING_SIZE)
    return lambda first, second: 4 * cluster_loss(first)


@torch.no_grad()
def embed(encoder: nn.Module, points: Tensor) -> Tensor:
    """Unit embeddings."""
    return nn.functional.normalize(encoder(points), dim=1)


def evaluate(
    encoder: nn.Module, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """On the test set: nearest-neighbour accuracy, averaged over the rare classes, and adjusted Rand index."""
    known, new = embed(encoder, train_set[0]), embed(encoder, test_set[0])
    neighbours = KNeighborsClassifier(1).fit(known.numpy(), train_set[1].numpy())
    correct = torch.from_numpy(neighbours.predict(new.numpy())) == test_set[1]
    rare = [correct[test_set[1] == label].double().mean() for label in range(N_CLASSES - N_RARE, N_CLASSES)]
    clusters = StudentTMixture(N_CLASSES, EMBEDDING_SIZE, n_init=3, generator=0).fit(known).predict(new)
    return float(torch.stack(rare).mean()), float(adjusted_rand_score(test_set[1].numpy(), clusters.numpy()))


def draw(encoders: dict[str, nn.Module], data: LongTailedData, path: Path) -> None:
    """A t-SNE picture of each encoder's embeddings; the numbers are those of the full space."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    train_set, test_set = data.draw(3000), data.draw(3000)
    figure = Figure(figsize=(5 * len(encoders), 5.4), layout="constrained")
    axes = figure.subplots(1, len(encoders), squeeze=False)[0]
    for axis, (name, encoder) in zip(axes, encoders.items()):
        accuracy, rand = evaluate(encoder, train_set, test_set)
        x = TSNE(init="pca", random_state=0).fit_transform(embed(encoder, test_set[0][:N_DRAWN]).numpy())
        for label in range(N_CLASSES):
            member = test_set[1][:N_DRAWN].numpy() == label
            size = 6 if label < N_CLASSES - N_RARE else 16
            axis.scatter(*x[member].T, s=size, color=f"C{label}", label=f"{member.sum()}", linewidths=0, alpha=0.7)
        axis.set(
            title=f"{name}\nrare-class accuracy {accuracy:.2f}, adjusted Rand index {rand:.2f}", xticks=[], yticks=[]
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10, title="points per class")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train both encoders and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("before_after.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = LongTailedData(arguments.seed)
    points, _ = data.draw(3000)
    torch.manual_seed(arguments.seed)
    untrained = nn.Linear(N_SIGNAL + N_NOISE, EMBEDDING_SIZE)
    encoders = {
        "before training": untrained,
        "contrastive loss": train(untrained, points, seed=arguments.seed),
        "contrastive + cluster loss": train(untrained, points, seed=arguments.seed, added_loss=weighted_cluster_loss()),
    }
    draw(encoders, data, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
