"""The picture of the front page: the same data with outliers, under a Gaussian and under a Student-t mixture."""

import torch
from matplotlib.figure import Figure

from drawing import GREYS, MARKERS, ellipses
from tmixture import StudentTMixture

CENTRES = torch.tensor([[-3.0, -1.0], [0.0, 2.5], [3.0, -1.0]])
N_PER_CLUSTER, N_OUTLIERS, REACH = 150, 36, 12.0


def draw() -> Figure:
    generator = torch.Generator().manual_seed(4)
    truth = torch.arange(3).repeat_interleave(N_PER_CLUSTER)
    clusters = CENTRES[truth] + 0.6 * torch.randn(len(truth), 2, generator=generator)
    outliers = REACH * (2 * torch.rand(N_OUTLIERS, 2, generator=generator) - 1)
    data = torch.cat([clusters, outliers])

    figure = Figure(figsize=(9, 4.3))
    titles = {float("inf"): "Gaussian mixture (ν = ∞)", 3.0: "Student-t mixture (ν = 3)"}
    for ax, (dof, title) in zip(figure.subplots(1, 2), titles.items()):
        mixture = StudentTMixture(3, 2, dof=dof, covariance_type="full", n_init=5, generator=0).fit(data)
        ellipses(ax, mixture)
        ax.plot(*outliers.T, "x", color="0.35", markersize=5, markeredgewidth=1.0)
        # A component takes the marker of the true cluster that its mean is nearest to.
        nearest = torch.cdist(mixture.means, CENTRES).argmin(1)[mixture.predict(clusters)]
        for k in range(3):
            ax.plot(*clusters[nearest == k].T, MARKERS[k], color=GREYS[k], markersize=3)
        ax.set(title=title, xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set(visible=True, color="0.8")
    return figure
