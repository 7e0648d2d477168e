"""Do clusters live while the features move? An encoder of long-tailed digits learns by SimCLR; mixtures only watch.

Each way to follow the features is compared, every 14 steps from step 28 on, with a fresh fit to the features of that
moment: the ratio of the perplexities of the clusters (1: as many in use), its least value, the share of the moments
below 0.8, and the share of pairs of one cluster that are of one class at the end. "Jump": all features are rotated at
step 150, which shows at one of the moments before any row after it was seen by a fit.

    python -m benchmarks.moving_clusters
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.few_labels import BATCH
from benchmarks.long_tailed import DATA_SETS, Split, augmented_digits, digits_encoder, split_digits
from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss
from tmixture.losses.health import perplexity

STEPS, FIRST, EVERY = 300, 28, 14
WIDTH = DATA_SETS["digits"].width
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Setting:
    """How the encoder learns, and with how many clusters it is watched."""

    n_components: int
    batch_norm: bool = False
    optimizer: str = "Adam 1e-3"
    warm_up: bool = False
    jump: bool = False

    def __str__(self) -> str:
        extras = [name for name in ("batch_norm", "warm_up", "jump") if getattr(self, name)]
        return ", ".join([f"K = {self.n_components}", self.optimizer, *(name.replace("_", " ") for name in extras)])


SETTINGS = [
    Setting(8, optimizer="AdamW 3e-4", warm_up=True),
    Setting(8, jump=True),
    Setting(20),
    Setting(20, batch_norm=True),
    Setting(20, jump=True),
    Setting(40),
    Setting(40, batch_norm=True, optimizer="AdamW 3e-4", warm_up=True, jump=True),
]


class WarmEM:
    """A few iterations of EM from the last parameters, every few calls, on the last rows."""

    def __init__(self, n_components: int, *, every: int, iterations: int, rows: int = 1024) -> None:
        self.mixture = StudentTMixture(n_components, WIDTH, warm_start=True, tol=0, generator=0)
        self.every, self.iterations, self.rows = every, iterations, rows
        self.window, self.calls = torch.empty(0, WIDTH), 0

    def __call__(self, x: Tensor) -> None:
        """Learn from a batch."""
        self.window = torch.cat([self.window, nn.functional.normalize(x, dim=1)])[-self.rows :]
        self.calls += 1
        if self.mixture.is_fitted and self.calls % self.every == 0:
            self.mixture.max_iter = self.iterations
            self.mixture.fit(self.window)
        elif not self.mixture.is_fitted and len(self.window) >= 10 * self.mixture.n_components:
            self.mixture.fit(self.window)


WAYS = {
    "refit every 10 calls (the default)": lambda K: ClusterTripletLoss(n_components=K, embedding_size=WIDTH),
    "refit every 25 calls": lambda K: ClusterTripletLoss(n_components=K, embedding_size=WIDTH, refit=25),
    "5 iterations of EM every 10 calls": lambda K: WarmEM(K, every=10, iterations=5),
    "1 iteration of EM every call, 512 rows": lambda K: WarmEM(K, every=1, iterations=1, rows=512),
    "streaming": lambda K: ClusterTripletLoss(n_components=K, embedding_size=WIDTH, refit="streaming"),
}


def purity(labels: Tensor, classes: Tensor) -> float:
    """The share of pairs of one label that are of one class."""
    same = labels[:, None] == labels
    same.fill_diagonal_(False)
    return float((classes[:, None] == classes)[same].double().mean())


def watch(setting: Setting, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Of each way, the ratio of perplexities and the purity at each moment."""
    data, generator = split_digits(seed, 1), torch.Generator().manual_seed(seed)
    network = _with_batch_norm(digits_encoder(seed)) if setting.batch_norm else digits_encoder(seed)
    name, rate = setting.optimizer.split()
    optimizer = getattr(torch.optim, name)(network.parameters(), lr=float(rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1.0, (t + 1) / 100) if setting.warm_up else 1.0
    )
    contrastive, pairs, turn = SupConLoss(0.2), torch.arange(BATCH).repeat(2), torch.eye(WIDTH)
    watchers = {way: make(setting.n_components) for way, make in WAYS.items()}
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for step in range(STEPS):
        rows = torch.randint(len(data.x), (BATCH,), generator=generator)
        one, two = (network(augmented_digits(data.x[rows], generator)) for _ in range(2))
        optimizer.zero_grad()
        contrastive(torch.cat([one, two]), pairs).backward()
        optimizer.step()
        schedule.step()
        if setting.jump and step == STEPS // 2:
            turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
        for watcher in watchers.values():
            watcher(one.detach() @ turn)
        if step >= FIRST and step % EVERY == 0:
            _look(watchers, seen, network, data, turn, generator)
    return seen


@torch.no_grad()
def _look(
    watchers: dict[str, object],
    seen: dict[str, list[tuple[float, float]]],
    network: nn.Module,
    data: Split,
    turn: Tensor,
    generator: torch.Generator,
) -> None:
    rows = torch.randint(len(data.x), (1024,), generator=generator)
    features = nn.functional.normalize(network(augmented_digits(data.x[rows], generator)) @ turn, dim=1)
    for way, watcher in watchers.items():
        mixture = watcher.mixture  # type: ignore[attr-defined]
        fresh = StudentTMixture(mixture.n_components, WIDTH, generator=1).fit(features).predict(features)
        if mixture.is_fitted:
            labels = mixture.predict(features)
            seen[way].append((float(perplexity(labels) / perplexity(fresh)), purity(labels, data.y[rows])))


def _with_batch_norm(network: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for layer in network.children():
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def main() -> None:
    """Watch all settings and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "MOVING_CLUSTERS.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Clusters of features that move", "", *str(__doc__).split("\n\n")[1:2], ""]
    lines += [
        "| setting | way | ratio at the end | least ratio | below 0.8 | same class |",
        "|---|---|---|---|---|---|",
    ]
    for seed, setting in enumerate(tqdm(SETTINGS)):
        for way, values in watch(setting, seed).items():
            ratio, same = torch.tensor(values).T
            below, same = (ratio < 0.8).double().mean(), same[-5:].mean()
            numbers = f"{ratio[-5:].mean():.2f} | {ratio.min():.2f} | {below:.0%} | {same:.0%}"
            lines.append(f"| {setting} | {way} | {numbers} |")
    arguments.output.write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
