"""Do cluster losses help when few labels are known? Long-tailed images, paired seeds.

An encoder learns by SimCLR from all images and by a supervised contrastive loss from the few labelled ones (the base).
Each arm adds one loss on clusters. Reported is the accuracy of the nearest labelled image on a balanced test set, minus
that of the base from the same split, weights and batches, with 95 % t-intervals over the seeds; "rare" are the five
rarest classes. The last columns are minus the same loss on the nearest centroid's labels instead.

    python -m benchmarks.few_labels --labels 1 2 5 --seeds 8
    python -m benchmarks.few_labels --data cifar10-lt --path cifar10-lt.zip --labels 25 --seeds 8
"""

from __future__ import annotations

import argparse
import copy
import json
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
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.long_tailed import DATA_SETS, N_CLASSES, N_RARE, DataSet, Split
from tmixture import StudentTMixture
from tmixture.losses import ClusterLoss, ClusterTripletLoss, CoMembershipLoss, SemiHardMiner

BATCH = 128
HERE = Path(__file__).parent

AddedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From embeddings (B, d), known labels (B,) with −1, and true labels (B,), which only a control may look at."""


def tied(d: int, **settings: object) -> StudentTMixture:
    """A component for each class, one scale matrix for all, means held near the labelled rows."""
    return StudentTMixture(N_CLASSES, d, covariance_type="tied", anchor_rows=100, generator=0, **settings)


def two_each(d: int) -> StudentTMixture:
    """Two components for each class, with one scale matrix for all, and no anchors."""
    labels = [*range(N_CLASSES)] * 2
    return StudentTMixture(2 * N_CLASSES, d, covariance_type="tied", component_labels=labels, generator=0)


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

    def __init__(self, d: int, loss: nn.Module, weight: float = 1.0) -> None:
        self.loss, self.weight, self.miner = loss, weight, SemiHardMiner(0.1)
        self.rows, self.known = torch.empty(0, d), torch.empty(0, dtype=torch.long)

    def __call__(self, x: Tensor, known: Tensor, _: Tensor) -> Tensor:
        """The loss."""
        units = nn.functional.normalize(x.detach(), dim=1)
        self.rows, self.known = torch.cat([self.rows, units])[-1024:], torch.cat([self.known, known])[-1024:]
        if not all((self.known == label).any() for label in range(N_CLASSES)):
            return 0 * x.sum()
        centroids = torch.stack([self.rows[self.known == label].mean(0) for label in range(N_CLASSES)])
        if isinstance(self.loss, CoMembershipLoss):
            distance = torch.cdist(units, centroids).square()
            spread = torch.cdist(self.rows, centroids).square().min(1).values.mean() / x.shape[1]
            soft = self.loss.memberships(-distance / (2 * spread))
            p = torch.where((known >= 0)[:, None], nn.functional.one_hot(known.clamp(min=0), N_CLASSES), soft)
            return self.weight * self.loss.reducer(self.loss.soft_terms(x, p, x, p, apart=False), x, known)
        labels = torch.where(known >= 0, known, torch.cdist(units, centroids).argmin(1))
        tuples = self.miner(x, labels) if isinstance(self.loss, TripletMarginLoss) else None
        return self.weight * self.loss(x, labels, tuples)


def triplets(d: int, **settings: object) -> ClusterTripletLoss:
    """The triplet loss on a tied mixture."""
    return ClusterTripletLoss(tied(d), **{"margin": 0.1, **settings})


def soft(d: int, mixture: StudentTMixture | None = None, **settings: object) -> ClusterLoss:
    """The loss by co-membership, on a tied mixture."""
    return ClusterLoss(mixture or tied(d), CoMembershipLoss(), **settings)


def flattened(d: int) -> CoMembershipLoss:
    """The loss with a posterior at a temperature of an eighth of the number of features."""
    return CoMembershipLoss(posterior_temperature=d / 8)


def by_default(loss: nn.Module | None, d: int, n_components: int = N_CLASSES) -> ClusterLoss:
    """A loss as it is made in one line."""
    if loss is None:
        return ClusterTripletLoss(n_components=n_components, embedding_size=d)
    return ClusterLoss(loss=loss, n_components=n_components, embedding_size=d)


ARMS: dict[str, Callable[[int], AddedLoss]] = {
    "triplets": lambda d: on_clusters(triplets(d)),
    "triplets, weight 4": lambda d: on_clusters(triplets(d), 4),
    "triplets, all defaults": lambda d: on_clusters(by_default(None, d)),
    "co-membership": lambda d: on_clusters(soft(d)),
    "co-membership, weight 2": lambda d: on_clusters(soft(d), 2),
    "co-membership, weight 4": lambda d: on_clusters(soft(d), 4),
    "co-membership, posterior flattened": lambda d: on_clusters(ClusterLoss(tied(d), flattened(d))),
    "co-membership, all defaults": lambda d: on_clusters(by_default(CoMembershipLoss(), d)),
    "co-membership, two components a class": lambda d: on_clusters(soft(d, two_each(d))),
    "co-membership, Gaussian": lambda d: on_clusters(soft(d, tied(d, dof=float("inf")))),
    "SupCon on hard labels": lambda d: on_clusters(ClusterLoss(tied(d), SupConLoss(0.2))),
    "no labels known: triplets, K = 20": lambda d: without_labels(by_default(None, d, 20)),
    "no labels known: co-membership, K = 20": lambda d: without_labels(by_default(CoMembershipLoss(), d, 20)),
    "control: nearest centroid, triplets": lambda d: NearestCentroid(d, TripletMarginLoss(0.1)),
    "control: nearest centroid, co-membership": lambda d: NearestCentroid(d, CoMembershipLoss()),
    "control: nearest centroid, co-membership, weight 2": lambda d: NearestCentroid(d, CoMembershipLoss(), 2),
    "control: nearest centroid, co-membership, posterior flattened": lambda d: NearestCentroid(d, flattened(d)),
    "control: shuffled, triplets": lambda d: on_clusters(triplets(d, shuffle=True)),
    "control: shuffled, co-membership": lambda d: on_clusters(soft(d, shuffle=True)),
    "all labels true: triplets": lambda d: on_true_labels(triplets(d)),
    "all labels true: co-membership": lambda d: on_true_labels(soft(d)),
}


# What a mixture must beat: the same loss on the labels of the nearest mean of the labelled rows.
CENTROIDS = {
    "triplets": "control: nearest centroid, triplets",
    "triplets, all defaults": "control: nearest centroid, triplets",
    "co-membership": "control: nearest centroid, co-membership",
    "co-membership, all defaults": "control: nearest centroid, co-membership",
    "co-membership, posterior flattened": "control: nearest centroid, co-membership, posterior flattened",
    "co-membership, weight 2": "control: nearest centroid, co-membership, weight 2",
}


class Training:
    """An encoder that learns by SimCLR and a supervised contrastive loss, and from some step on by an added loss, too.

    A copy goes on from where the original is, with the same batches to come.
    """

    def __init__(self, kind: DataSet, data: Split, seed: int) -> None:
        self.kind, self.data, self.known = kind, data, data.known
        self.network, self.generator = kind.encoder(seed), torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.contrastive = SupConLoss(0.2)

    def copy(self) -> Training:
        """Another one in the same state."""
        other = Training(self.kind, self.data, 0)
        other.network.load_state_dict(self.network.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        other.generator.set_state(self.generator.get_state())
        return other

    def run(self, steps: int, added: AddedLoss | None = None) -> Training:
        """Train for some steps."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss(added).backward()
            self.optimizer.step()
        return self

    def loss(self, added: AddedLoss | None) -> Tensor:
        """Of the next batch: two views of some images, two of some labelled ones."""
        data, generator = self.data, self.generator
        rows = torch.randint(len(data.x), (BATCH,), generator=generator)
        one, two = (self.network(self.kind.augmented(data.x[rows], generator)) for _ in range(2))
        chosen = data.labelled
        if self.kind.labelled_batch < len(chosen) and self.kind.labelled_batch:
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[: self.kind.labelled_batch]]
        pairs = torch.arange(BATCH).repeat(2)  # as labels, they make it SimCLR's loss
        loss = self.contrastive(torch.cat([one, two]), pairs)
        few, labels = one[:0], data.y[chosen].repeat(2)
        if len(chosen):
            few = self.network(self.kind.augmented(data.x[chosen].repeat(2, 1, 1, 1), generator))
            loss = loss + self.contrastive(few, labels)
        if added is not None:
            mixed, known = torch.cat([one, few]), torch.cat([self.known[rows], labels])
            loss = loss + added(mixed, known, torch.cat([data.y[rows], labels]))
        return loss


@torch.no_grad()
def accuracy(network: nn.Module, data: Split) -> tuple[float, float]:
    """Of the nearest labelled image, in percent: of all classes and of the rare ones."""
    network.eval()
    references, queries = (nn.functional.normalize(network(x), dim=1) for x in (data.x[data.labelled], data.test_x))
    correct = data.y[data.labelled][(queries @ references.T).argmax(1)] == data.test_y
    rare = data.test_y >= N_CLASSES - N_RARE
    return 100 * float(correct.double().mean()), 100 * float(correct[rare].double().mean())


@dataclass(frozen=True)
class Experiment:
    """What is compared: so many labels of each class, arms, and steps of each; and where its accuracies are kept.

    Attributes:
        name: of the data set; `path` is where it lies, if it is no part of scikit-learn.
        n_labelled: images of each class with labels.
        arms: keys of `ARMS`.
        shared_steps: of the base, which all arms start from.
        steps: of each arm after them.
        kept: a folder with the accuracies of each seed, if they are to be kept.
    """

    name: str
    path: Path | None
    n_labelled: int
    arms: tuple[str, ...]
    shared_steps: int
    steps: int
    kept: Path | None

    def scores(self, seed: int) -> dict[str, tuple[float, float]]:
        """The accuracies of the base and of all arms from one seed, {arm: (all classes, rare classes)}; none twice."""
        record = None if self.kept is None else self.kept / f"{self}-seed-{seed}.json"
        done = json.loads(record.read_text()) if record and record.exists() else {}
        missing = [arm for arm in ("base", *self.arms) if arm not in done]
        if missing:
            torch.set_num_threads(1)
            warnings.simplefilter("ignore", RuntimeWarning)  # of components that were started anew
            kind = DATA_SETS[self.name]
            data = kind.split(seed, self.n_labelled, self.path)
            shared = Training(kind, data, seed).run(self.shared_steps)
            for arm in missing:
                added = None if arm == "base" else ARMS[arm](kind.width)
                done[arm] = accuracy(shared.copy().run(self.steps, added).network, data)
                if record:
                    record.parent.mkdir(parents=True, exist_ok=True)
                    record.write_text(json.dumps(done, indent=1))
        return {arm: done[arm] for arm in ("base", *self.arms)}

    def __str__(self) -> str:
        return f"{self.name}-{self.n_labelled}-labels-{self.shared_steps}-and-{self.steps}-steps"


def interval(values: np.ndarray) -> str:
    """Mean and 95 % t-interval, and how many are above zero."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5 if n > 1 else float("nan")
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] {int((values > 0).sum())}/{n}"


def table(runs: list[dict[str, tuple[float, float]]], arms: list[str]) -> list[str]:
    """Lines of Markdown: the gain of each arm over the base, and over the same loss on the centroid's labels."""
    base = np.array([run["base"] for run in runs])
    gains = {arm: np.array([run[arm] for run in runs]) - base for arm in arms}
    lines = [
        f"Base: {base[:, 0].mean():.1f} for all classes, {base[:, 1].mean():.1f} for the rare ones.",
        "",
        "| arm | all classes | rare classes | all, minus centroid | rare, minus centroid |",
        "|---|---|---|---|---|",
    ]
    for arm, gain in gains.items():
        control = gains.get(CENTROIDS.get(arm, ""))
        columns = [*gain.T, *([] if control is None else (gain - control).T)]
        lines.append(" | ".join([f"| {arm}", *map(interval, columns), *["|"] * (control is None), ""]).rstrip())
    return [*lines, ""]


def main() -> None:
    """Run all arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DATA_SETS), default="digits")
    parser.add_argument("--path", type=Path, help="the zip file of data that are no part of scikit-learn")
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 5], help="labelled images of each class")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--shared-steps", type=int, help="of the base, which all arms start from")
    parser.add_argument("--steps", type=int, help="of each arm after them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=HERE / "FEW_LABELS.md")
    parser.add_argument("--kept", type=Path, help="a folder from which the same command goes on, with the same code")
    asked = parser.parse_args()
    seeds, kind = range(asked.first_seed, asked.first_seed + asked.seeds), DATA_SETS[asked.data]
    shared_steps = kind.shared_steps if asked.shared_steps is None else asked.shared_steps
    steps = kind.steps if asked.steps is None else asked.steps
    lines = [f"# Few labels: {kind.title}, long-tailed", "", __doc__.split("\n\n")[1], ""]
    length = f"{shared_steps} shared steps and {steps} of each arm"
    lines += [f"{len(seeds)} seeds from {seeds[0]}, {length}, torch {torch.__version__}.", ""]
    for m in asked.labels:
        trial = Experiment(asked.data, asked.path, m, tuple(asked.arms), shared_steps, steps, asked.kept)
        with ProcessPoolExecutor(asked.jobs, multiprocessing.get_context("spawn")) as pool:
            runs = list(tqdm(pool.map(trial.scores, seeds), total=len(seeds), desc=f"{m} labels a class"))
        lines += [f"## {m} labelled image{'s' * (m > 1)} of each class", "", *table(runs, asked.arms)]
        asked.output.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
