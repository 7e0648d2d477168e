"""What priors, a background and missing values do, in two dimensions."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from drawing import ellipses
from tmixture import Prior, StudentTMixture

CENTRES = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])


def groups(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return CENTRES[torch.arange(n) % 3] + torch.randn(n, 2, generator=generator)


def with_and_without(ax: Axes, x: torch.Tensor, K: int, prior: Prior, **settings: object) -> None:
    for given, style in ((None, {"color": "0.6", "linestyle": ":"}), (prior, {})):
        mixture = StudentTMixture(K, 2, prior=given, generator=0, max_iter=500, **settings).fit(x)
        left = mixture.weights > 1e-6
        shown = StudentTMixture.from_parameters(
            mixture.weights[left], mixture.means[left], mixture.scales[left], covariance_type="full"
        )
        ellipses(ax, shown, **style)
    ax.plot(*x.T, ".", color="0.45", markersize=3)


def background(ax: Axes) -> None:
    noise = 24 * torch.rand(150, 2, generator=torch.Generator().manual_seed(1)) - 9
    x = torch.cat([groups(300), noise])
    mixture = StudentTMixture(4, 2, background=True, generator=0).fit(x)
    nowhere = mixture.predict(x) == -1
    clusters = StudentTMixture.from_parameters(mixture.weights[:3], mixture.means[:3], mixture.scales[:3])
    ellipses(ax, clusters)
    ax.plot(*x[nowhere].T, "x", color="0.35", markersize=4, markeredgewidth=0.9)
    ax.plot(*x[~nowhere].T, ".", color="0.45", markersize=3)


def missing(ax: Axes) -> None:
    x = groups(300)
    x[torch.rand(300, 2, generator=torch.Generator().manual_seed(2)) < 0.25] = torch.nan
    mixture = StudentTMixture(3, 2, allow_missing=True, n_init=4, generator=0).fit(x)
    ellipses(ax, mixture)
    gaps = x.isnan()
    low = -4.4
    ax.plot(*x[~gaps.any(1)].T, ".", color="0.45", markersize=3)
    ax.plot(x[gaps[:, 1] & ~gaps[:, 0], 0], torch.full((int((gaps[:, 1] & ~gaps[:, 0]).sum()),), low), "|", color="0.2")
    ax.plot(torch.full((int((gaps[:, 0] & ~gaps[:, 1]).sum()),), low), x[gaps[:, 0] & ~gaps[:, 1], 1], "_", color="0.2")


def draw() -> Figure:
    figure = Figure(figsize=(9, 8.6))
    axes = figure.subplots(2, 2).flat
    with_and_without(axes[0], groups(600), 12, Prior(weight_rows=-8))
    with_and_without(axes[1], groups(15), 3, Prior(scale_rows=5), covariance_type="full")
    background(axes[2])
    missing(axes[3])
    titles = (
        "12 components, weight_rows=−8 (dotted: no prior)",
        "15 rows, scale_rows=5 (dotted: no prior)",
        "background=True (crosses: its rows)",
        "allow_missing=True (ticks: one value)",
    )
    for ax, title in zip(axes, titles):
        ax.set(title=title, xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set(visible=True, color="0.8")
    axes[2].set(xlim=(-9, 15), ylim=(-9, 15))
    return figure
