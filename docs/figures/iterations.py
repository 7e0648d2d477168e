"""EM iterations of the two scale updates: one Student-t with a full scale matrix, fitted to 2,000 draws."""

import torch
from matplotlib.figure import Figure

from tmixture import StudentTMixture

WIDTHS = (8, 128)


def draw() -> Figure:
    figure = Figure(figsize=(9, 3.2))
    for ax, d in zip(figure.subplots(1, 2, sharey=True), WIDTHS):
        generator = torch.Generator().manual_seed(0)
        squares = torch.randn(2000, 5, generator=generator).square().mean(1, keepdim=True)
        data = (torch.randn(2000, d, generator=generator) / squares.sqrt()).double()  # 5 degrees of freedom
        for update, style, color in (("px", "o-", "black"), ("classic", "--", "0.5")):
            mixture = StudentTMixture(
                1, d, dof=5.0, covariance_type="full", scale_update=update, tol=1e-9, max_iter=400, dtype=torch.float64
            ).fit(data)
            history = torch.tensor(mixture.history_, dtype=torch.float64)
            label = f"{update}: {mixture.n_iter_} iterations"
            ax.semilogy(history[-1] - history[:-1], style, color=color, markersize=4, label=label)
        ax.set(title=f"{d} features", xlabel="EM iteration", ylim=(1e-8, None))
        ax.legend()
    figure.axes[0].set_ylabel("log-likelihood still to gain")
    return figure
