"""The outlier weight u against the distance from the mean."""

import torch
from matplotlib.figure import Figure

STYLES = ("-", "--", "-.", ":")


def draw() -> Figure:
    distance = torch.linspace(0, 10, 300)  # δ/d: 1 is the expectation under a Gaussian
    figure = Figure(figsize=(9, 3.2))
    left, right = figure.subplots(1, 2)
    for dof, style in zip((2.0, 4.0, 20.0, 1e9), STYLES):
        left.plot(distance, (dof + 16) / (dof + 16 * distance), style, color="black", label=f"ν = {dof:g}")
    left.lines[-1].set_label("ν = ∞")
    for d, style in zip((2, 16, 512), STYLES):
        right.plot(distance, (4 + d * distance) / (4 + d), style, color="black", label=f"d = {d}")
    left.set(title="weight in the M-step, d = 16", xlabel="δ/d", ylabel="u", ylim=(0, 3))
    right.set(title="outlierness, ν = 4", xlabel="δ/d", ylabel="1/u", ylim=(0, None))
    for ax in (left, right):
        ax.legend()
    return figure
