"""The pictures of `tmixture.plot` for the data of the page on clustering embeddings."""

import torch
from matplotlib.figure import Figure

from tmixture import plot, select_components

N_GROUPS, N_FEATURES = 6, 16


def draw() -> Figure:
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(N_GROUPS, N_FEATURES, generator=generator)
    groups = torch.multinomial(0.6 ** torch.arange(N_GROUPS), 4000, replacement=True, generator=generator)
    squares = torch.randn(4000, 5, generator=generator).square().mean(1, keepdim=True)
    embeddings = centres[groups] + torch.randn(4000, N_FEATURES, generator=generator) / squares.sqrt()
    embeddings[:40] = 12 * torch.randn(40, N_FEATURES, generator=generator)  # outliers
    selection = select_components(embeddings, range(2, 10), N_FEATURES, n_init=3, generator=0)

    figure = Figure(figsize=(10, 7))
    axes = figure.subplots(2, 2).flat
    plot.criterion(selection, ax=axes[0])
    plot.history(selection.best, ax=axes[1])
    plot.responsibility_entropy(selection.best, embeddings, ax=axes[2])
    plot.outlier_weights(selection.best, embeddings, ax=axes[3])
    return figure
