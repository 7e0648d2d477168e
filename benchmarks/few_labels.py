"""Do cluster losses help when few labels are known? scikit-learn's digits, made long-tailed; paired seeds.

An encoder learns by SimCLR from all images and by a supervised contrastive loss from the few labelled ones (the base).
Each arm adds one loss on clusters. Reported is the accuracy of the nearest labelled image on a balanced test set, minus
that of the base from the same split, weights and batches, with 95 % t-intervals over the seeds; "rare" are the five
rarest classes. The last columns are minus the same loss on the nearest centroid's labels instead.

    python -m benchmarks.few_labels --labels 1 2 5 --seeds 8
"""

from __future__ import annotations

import argparse
import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, ClusterTripletLoss, CoMembershipLoss, SemiHardMiner

N_CLASSES, N_RARE = 10, 5
LARGEST, SMALLEST, TEST_IMAGES = 110, 5, 65
WIDTH, BATCH = 32, 128
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 8, 8) and labels (n,) to train on and to test with, and the indices of the labelled ones."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    labelled: Tensor

    @property
    def known(self) -> Tensor:
        """The labels (n,) of the training images, −1 where unknown."""
        known = torch.full_like(self.y, -1)
        known[self.labelled] = self.y[self.labelled]
        return known


def split(seed: int, n_labelled: int) -> Split:
    """Long-tailed training images, `n_labelled` of each class with labels, and 64 or 65 test images of each class."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target)
    generator = torch.Generator().manual_seed(seed)
    sizes = np.geomspace(LARGEST, SMALLEST, N_CLASSES).round().astype(int)
    train, test, labelled = [], [], []
    for label, size in enumerate(sizes.tolist()):
        rows = (y == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        labelled.append(sum(map(len, train)) + torch.arange(n_labelled))
        train.append(rows[:size])
        test.append(rows[LARGEST : LARGEST + TEST_IMAGES])
    index, test_index = torch.cat(train), torch.cat(test)
    return Split(x[index], y[index], x[test_index], y[test_index], torch.cat(labelled))


def encoder(seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, WIDTH),
    )  # fmt: skip


def augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to a pixel, brightened or darkened, and noisy."""
    shift = torch.randint(0, 3, (2, len(x)), generator=generator)
    padded, pixels = nn.functional.pad(x[:, 0], (1, 1, 1, 1)), torch.arange(8)
    rows, columns = shift[0][:, None, None] + pixels[:, None], shift[1][:, None, None] + pixels
    moved = padded[torch.arange(len(x))[:, None, None], rows, columns][:, None]
    brightness = 0.7 + 0.6 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return moved * brightness + 0.1 * torch.randn(x.shape, generator=generator)


AddedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From embeddings (B, d), known labels (B,) with −1, and true labels (B,), which only a control may look at."""


def tied() -> StudentTMixture:
    """A component for each class, one scale matrix for all, means held near the labelled rows."""
    return StudentTMixture(N_CLASSES, WIDTH, covariance_type="tied", anchor_rows=100, generator=0)


def on_clusters(loss: ClusterLoss, weight: float = 1.0) -> AddedLoss:
    """A cluster loss that is told the known labels."""
    return lambda x, known, _: weight * loss(x, known)


def without_labels(loss: ClusterLoss, weight: float = 1.0) -> AddedLoss:
    """A cluster loss that is told nothing."""
    return lambda x, known, _: weight * loss(x)


def on_true_labels(loss: ClusterLoss, weight: float = 1.0) -> AddedLoss:
    """The wrapped loss on all labels."""
    return lambda x, _, labels: weight * loss(x, labels)


class NearestCentroid:
    """A loss whose labels are the nearest mean of the labelled rows among the last thousand."""

    def __init__(self, loss: nn.Module, weight: float = 1.0) -> None:
        self.loss, self.weight, self.miner = loss, weight, SemiHardMiner(0.1)
        self.rows, self.known = torch.empty(0, WIDTH), torch.empty(0, dtype=torch.long)

    def __call__(self, x: Tensor, known: Tensor, _: Tensor) -> Tensor:
        """The loss."""
        units = nn.functional.normalize(x.detach(), dim=1)
        self.rows, self.known = torch.cat([self.rows, units])[-1024:], torch.cat([self.known, known])[-1024:]
        if not all((self.known == label).any() for label in range(N_CLASSES)):
            return 0 * x.sum()
        centroids = torch.stack([self.rows[self.known == label].mean(0) for label in range(N_CLASSES)])
        if isinstance(self.loss, CoMembershipLoss):
            distance = torch.cdist(units, centroids).square()
            spread = torch.cdist(self.rows, centroids).square().min(1).values.mean() / WIDTH
            soft = (-distance / (2 * spread) / (WIDTH / 8)).softmax(1)
            p = torch.where((known >= 0)[:, None], nn.functional.one_hot(known.clamp(min=0), N_CLASSES), soft)
            return self.weight * self.loss.reducer(self.loss.soft_terms(x, p, x, p, apart=False), x, known)
        labels = torch.where(known >= 0, known, torch.cdist(units, centroids).argmin(1))
        tuples = self.miner(x, labels) if isinstance(self.loss, TripletMarginLoss) else None
        return self.weight * self.loss(x, labels, tuples)


def triplets(**settings: object) -> ClusterTripletLoss:
    """The triplet loss on a tied mixture."""
    return ClusterTripletLoss(tied(), **{"margin": 0.1, **settings})


def soft(mixture: StudentTMixture | None = None, **settings: object) -> ClusterLoss:
    """The loss by co-membership, on a tied mixture."""
    return ClusterLoss(mixture or tied(), CoMembershipLoss(), **settings)


ARMS: dict[str, Callable[[], AddedLoss]] = {
    "triplets": lambda: on_clusters(triplets()),
    "triplets, weight 4": lambda: on_clusters(triplets(), 4),
    "triplets, all defaults": lambda: on_clusters(ClusterTripletLoss(n_components=N_CLASSES, embedding_size=WIDTH)),
    "co-membership": lambda: on_clusters(soft()),
    "co-membership, weight 2": lambda: on_clusters(soft(), 2),
    "co-membership, weight 4": lambda: on_clusters(soft(), 4),
    "co-membership, all defaults": lambda: on_clusters(
        ClusterLoss(loss=CoMembershipLoss(), n_components=N_CLASSES, embedding_size=WIDTH)
    ),
    "co-membership, Gaussian": lambda: on_clusters(
        soft(StudentTMixture(N_CLASSES, WIDTH, covariance_type="tied", anchor_rows=100, dof=float("inf"), generator=0))
    ),
    "SupCon on hard labels": lambda: on_clusters(ClusterLoss(tied(), SupConLoss(0.2))),
    "no labels known: triplets, K = 20": lambda: without_labels(
        ClusterTripletLoss(n_components=20, embedding_size=WIDTH)
    ),
    "no labels known: co-membership, K = 20": lambda: without_labels(
        ClusterLoss(loss=CoMembershipLoss(), n_components=20, embedding_size=WIDTH)
    ),
    "control: nearest centroid, triplets": lambda: NearestCentroid(TripletMarginLoss(0.1)),
    "control: nearest centroid, co-membership": lambda: NearestCentroid(CoMembershipLoss()),
    "control: nearest centroid, co-membership, weight 2": lambda: NearestCentroid(CoMembershipLoss(), 2),
    "control: shuffled, triplets": lambda: on_clusters(triplets(shuffle=True)),
    "control: shuffled, co-membership": lambda: on_clusters(soft(shuffle=True)),
    "all labels true: triplets": lambda: on_true_labels(triplets()),
    "all labels true: co-membership": lambda: on_true_labels(soft()),
}


# What a mixture must beat: the same loss on the labels of the nearest mean of the labelled rows.
CENTROIDS = {
    "triplets": "control: nearest centroid, triplets",
    "triplets, all defaults": "control: nearest centroid, triplets",
    "co-membership": "control: nearest centroid, co-membership",
    "co-membership, all defaults": "control: nearest centroid, co-membership",
    "co-membership, weight 2": "control: nearest centroid, co-membership, weight 2",
}


def train(data: Split, seed: int, added: AddedLoss | None, steps: int) -> nn.Module:
    """An encoder after SimCLR and a supervised contrastive loss, with or without an added loss."""
    network, generator = encoder(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    contrastive, supervised, known = SupConLoss(0.2), SupConLoss(0.2), data.known
    pairs = torch.arange(BATCH).repeat(2)  # as labels, they make it SimCLR's loss
    for _ in range(steps):
        rows = torch.randint(len(data.x), (BATCH,), generator=generator)
        one, two = (network(augmented(data.x[rows], generator)) for _ in range(2))
        few = network(augmented(data.x[data.labelled].repeat(2, 1, 1, 1), generator))
        loss = contrastive(torch.cat([one, two]), pairs) + supervised(few, data.y[data.labelled].repeat(2))
        if added is not None:
            mixed, labels = torch.cat([one, few]), torch.cat([data.y[rows], data.y[data.labelled].repeat(2)])
            loss = loss + added(mixed, torch.cat([known[rows], labels[BATCH:]]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def accuracy(network: nn.Module, data: Split) -> tuple[float, float]:
    """Of the nearest labelled image, in percent: of all classes and of the rare ones."""
    references, queries = (nn.functional.normalize(network(x), dim=1) for x in (data.x[data.labelled], data.test_x))
    correct = data.y[data.labelled][(queries @ references.T).argmax(1)] == data.test_y
    rare = data.test_y >= N_CLASSES - N_RARE
    return 100 * float(correct.double().mean()), 100 * float(correct[rare].double().mean())


def scores(seed: int, n_labelled: int, arms: list[str], steps: int) -> dict[str, tuple[float, float]]:
    """The accuracies of the base and of all arms from one seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)  # of components that were started anew
    data = split(seed, n_labelled)
    added = {"base": None, **{name: ARMS[name]() for name in arms}}
    return {name: accuracy(train(data, seed, loss, steps), data) for name, loss in added.items()}


def interval(values: np.ndarray) -> str:
    """Mean and 95 % t-interval, and how many are above zero."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else float("nan")
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] {int((values > 0).sum())}/{n}"


def main() -> None:
    """Run all arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5], help="labelled images of each class")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=HERE / "FEW_LABELS.md")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    lines = []
    for m in arguments.labels:
        with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
            runs = pool.map(scores, seeds, *([value] * len(seeds) for value in (m, arguments.arms, arguments.steps)))
            table = list(tqdm(runs, total=len(seeds), desc=f"{m} labels a class"))
        base = np.array([row["base"] for row in table])
        lines += [f"## {m} labelled image{'s' * (m > 1)} of each class", ""]
        lines += [f"Base: {base[:, 0].mean():.1f} for all classes, {base[:, 1].mean():.1f} for the rare ones.", ""]
        lines += [
            "| arm | all classes | rare classes | all, minus centroid | rare, minus centroid |",
            "|---|---|---|---|---|",
        ]
        gains = {name: np.array([row[name] for row in table]) - base for name in arguments.arms}
        for name, gain in gains.items():
            control = gains.get(CENTROIDS.get(name, ""))
            columns = [*gain.T, *([] if control is None else (gain - control).T)]
            lines.append(" | ".join([f"| {name}", *map(interval, columns), *["|"] * (control is None), ""]).rstrip())
        lines.append("")
    heading = ["# Few labels on long-tailed digits", "", __doc__.split("\n\n")[1], ""]
    run = f"{len(seeds)} seeds from {seeds[0]}, {arguments.steps} steps, torch {torch.__version__}."
    text = "\n".join([*heading, run, "", *lines])
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
