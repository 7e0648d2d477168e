"""What the loss reports while an encoder trains: a healthy run, and one that collapses for want of a main loss."""

import torch
from matplotlib.figure import Figure
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor, nn

from tmixture.losses import ClusterTripletLoss
from tmixture.losses.settings import RefitPolicy

N_CLUSTERS, STEPS = 12, 200
CURVES = {
    "loss": "cluster loss",
    "perplexity": "perplexity, of 12 clusters",
    "effective_rank": "effective rank, of 16 directions",
}


def draw() -> Figure:
    healthy = train(main_weight=1.0, learning_rate=1e-3)
    failing = train(main_weight=0.0, learning_rate=1e-2, refit="streaming")
    figure = Figure(figsize=(11, 3.1))
    for ax, (key, title) in zip(figure.subplots(1, 3), CURVES.items()):
        for curve, style, label in ((healthy, "-", "healthy"), (failing, "--", "failing")):
            values = torch.tensor([row[key] for row in curve]).reshape(-1, 10).mean(1)
            ax.plot(range(0, STEPS, 10), values, style, color="black" if style == "-" else "0.5", label=label)
        ax.set(title=title, xlabel="step", ylim=(0, None))
    figure.axes[1].set_ylim(0, N_CLUSTERS)
    figure.axes[1].legend(loc="lower right")
    return figure


def train(*, main_weight: float, learning_rate: float, refit: RefitPolicy = 10) -> list[dict[str, float]]:
    """The cluster loss and its statistics at every step; a main weight of 0 leaves nothing but the cluster loss."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(N_CLUSTERS, 32, generator=generator)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
    contrastive, pairs = SupConLoss(temperature=0.2), torch.arange(64).repeat(2)
    cluster_loss = ClusterTripletLoss(n_components=N_CLUSTERS, embedding_size=16, refit=refit)

    def view(points: Tensor) -> Tensor:
        return encoder(points + 0.5 * torch.randn(points.shape, generator=generator))

    rows = []
    for _ in range(STEPS):
        labels = torch.randint(N_CLUSTERS, (64,), generator=generator)
        points = centres[labels] + torch.randn(64, 32, generator=generator)
        first, second = view(points), view(points)
        metric = cluster_loss(first)
        loss = main_weight * contrastive(torch.cat([first, second]), pairs) + metric
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append({"loss": metric.item(), **cluster_loss.statistics})
    return rows
