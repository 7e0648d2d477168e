"""What the cluster triplet loss does, in two dimensions: labels, a semi-hard triplet, the push of all triplets."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from pytorch_metric_learning.distances import LpDistance

from drawing import GREYS, MARKERS, ellipses
from tmixture import StudentTMixture
from tmixture.losses import ClusterTripletLoss, SemiHardMiner

CENTRES = torch.tensor([[-1.15, -0.5], [0.0, 1.0], [1.15, -0.5]])
MARGIN, N = 0.9, 60


def draw() -> Figure:
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(3).repeat_interleave(N // 3)
    batch = CENTRES[truth] + 0.42 * torch.randn(N, 2, generator=generator)
    mixture = StudentTMixture(3, 2, covariance_type="spherical", init=CENTRES, generator=0).fit(batch)
    distance = LpDistance(normalize_embeddings=False)
    labels = mixture.predict(batch)

    figure = Figure(figsize=(11, 3.4))
    left, middle, right = figure.subplots(1, 3)
    for ax, title in zip(
        (left, middle, right),
        ("1. the mixture labels the batch", "2. a semi-hard triplet", "3. where the triplets push"),
    ):
        ax.set(title=title, xlim=(-2.5, 2.5), ylim=(-1.9, 2.4), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set(visible=True, color="0.8")
    scatter(left, batch, labels)
    ellipses(left, mixture, share=0.8)

    anchors, positives, negatives = SemiHardMiner(MARGIN, distance)(batch, labels)
    scatter(middle, batch, labels, faint=True)
    a, p, n = batch[anchors], batch[positives], batch[negatives]
    # One that is easy to read: its anchor in the middle, its positive not too near, its negative well in the margin.
    near, far = (a - p).norm(dim=1), (a - n).norm(dim=1)
    awkwardness = (near - 0.8).abs() + (far - near - MARGIN / 2).abs() + a.norm(dim=1)
    show_triplet(middle, *(points[awkwardness.argmin()] for points in (a, p, n)))

    loss_fn = ClusterTripletLoss(mixture, margin=MARGIN, distance=distance, refit="external", normalize=False)
    moving = batch.clone().requires_grad_()
    loss_fn(moving).backward()
    assert moving.grad is not None
    scatter(right, batch, labels, faint=True)
    push = -moving.grad / moving.grad.norm(dim=1).max()
    right.quiver(*batch.T, *push.T, angles="xy", scale_units="xy", scale=1.3, width=0.006, color="black")
    return figure


def scatter(ax: Axes, points: torch.Tensor, labels: torch.Tensor, faint: bool = False) -> None:
    for k in range(3):
        ax.plot(*points[labels == k].T, MARKERS[k], color="0.75" if faint else GREYS[k], markersize=5)


def show_triplet(ax: Axes, anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> None:
    reach = float((anchor - positive).norm())
    for radius, style, label in ((reach, "-", "d(a, p)"), (reach + MARGIN, "--", "d(a, p) + margin")):
        ax.add_patch(Circle(anchor.tolist(), radius, fill=False, linestyle=style, linewidth=1.2))
        ax.plot([], [], "black", linestyle=style, linewidth=1.2, label=label)
    for point, letter in ((anchor, "a"), (positive, "p"), (negative, "n")):
        ax.annotate(
            letter, point.tolist(), ha="center", va="center", fontsize=9, bbox={"boxstyle": "circle", "fc": "w"}
        )
    ax.legend(loc="upper left", fontsize=8, frameon=True)
