"""The problems that every library gets: data, start and regularization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SEED = 0
DOF = 4.0


@dataclass(frozen=True)
class Shape:
    """N rows, d features, K components."""

    rows: int
    features: int
    components: int

    def __str__(self) -> str:
        rows = f"{self.rows // 1000}k" if self.rows >= 1000 else str(self.rows)
        return f"{rows}x{self.features}x{self.components}"


@dataclass(frozen=True)
class Problem:
    """What is fitted, and from where.

    Attributes:
        x: (N, d) float32.
        means: (K, d) float32, of the start; its weights are equal.
        variance: of the start's isotropic scales: the mean variance of the data.
        covariance: "diag" or "full".
        regularization: added to the scale diagonals.
        device: where to fit.
    """

    x: np.ndarray
    means: np.ndarray
    variance: float
    covariance: str
    regularization: float
    device: str = "cpu"

    def on_device(self, array: np.ndarray) -> Tensor:
        """A tensor of the same numbers where they are to be worked on."""
        return torch.from_numpy(array).to(self.device)

    def scales(self) -> np.ndarray:
        """The start's scales, (K, d) of diagonals or (K, d, d), float32."""
        K, d = self.means.shape
        scale = np.full(d, self.variance) if self.covariance == "diag" else self.variance * np.eye(d)
        return np.broadcast_to(scale, (K, *scale.shape)).astype(np.float32)

    def head(self) -> Problem:
        """The first rows alone, for a warm-up."""
        K, d = self.means.shape
        return replace(self, x=self.x[: max(8 * K, 4 * d)], regularization=self.variance)


def embeddings(shape: Shape) -> Tensor:
    """Clusters on the unit sphere in the manner of CLIP's embeddings: (N, d) float32.

    All of them share a direction (the cone that CLIP's embeddings of one modality lie in). About it, K clusters of
    unequal sizes have Student-t noise with ν = 8; the variances of centres and noise fall as a power of the rank of the
    direction, in a rotated basis.
    """
    N, d, K = shape.rows, shape.features, shape.components
    generator = torch.Generator().manual_seed(SEED)
    spectrum = torch.arange(1, d + 1).float().pow(-0.4)
    spectrum /= spectrum.norm()
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    cone = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    centres = 0.7 * cone + 0.5 * (torch.randn(K, d, generator=generator) * spectrum) @ rotation
    sizes = torch.arange(1, K + 1).float().pow(-0.5)
    labels = torch.multinomial(sizes, N, replacement=True, generator=generator)
    precision = torch._standard_gamma(torch.full((N, 1), 4.0), generator=generator) / 4
    noise = 0.6 * torch.randn(N, d, generator=generator) * spectrum / precision.sqrt()
    return torch.nn.functional.normalize(centres[labels] + noise @ rotation, dim=1)


def start_means(x: Tensor, K: int) -> Tensor:
    """K rows after ten rounds of Lloyd's algorithm: (K, d). A mean that loses all its rows stays where it is."""
    generator = torch.Generator().manual_seed(SEED)
    means = x[torch.randperm(len(x), generator=generator)[:K]]
    for _ in range(10):
        labels = torch.cat([torch.cdist(part, means).argmin(1) for part in x.split(16384)])
        counts = torch.bincount(labels, minlength=K)[:, None]
        sums = torch.zeros_like(means).index_add_(0, labels, x)
        means = torch.where(counts > 0, sums / counts, means)
    return means


def prepare(shape: Shape, folder: Path) -> Path:
    """Write the data and the start to a file, so that a process that measures holds nothing else."""
    path = folder / f"{shape}.npz"
    if not path.exists():
        x = embeddings(shape)
        np.savez(path, x=x.numpy(), means=start_means(x, shape.components).numpy())
    return path


def load(path: Path, covariance: str, device: str) -> Problem:
    """The problem in a file.

    The regularization is relative to the data's mean variance: 1e-6 of it, and 1e-2 of it for full scales in 128 or
    more features, where components have fewer rows than a scale matrix needs and float32 Cholesky factors fail else.
    """
    with np.load(path) as file:
        x, means = file["x"], file["means"]
    variance = float(x[:20000].var(axis=0).mean())
    relative = 1e-2 if covariance == "full" and x.shape[1] >= 128 else 1e-6
    return Problem(x, means, variance, covariance, relative * variance, device)
