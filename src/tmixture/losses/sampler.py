"""Sampling in which rare clusters are seen as often as common ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class ClusterBalancedSampler(Sampler[int]):
    """Draws a cluster, then a sample of it; for one process or for many.

    A cluster of n samples is drawn in proportion to n^(1 − exponent). Within a cluster the samples take turns in a
    random order, so none comes up twice before all others have come up once.

    With several processes each one makes its own sampler with its `rank`: together they draw what one would. Call
    `set_epoch` before every epoch, as for torch's `DistributedSampler`.

    Args:
        labels: (N,) cluster of each sample of the data set, such as `mixture.predict(embeddings)`.
        exponent: 1 draws all clusters equally often, 0 draws as the data are.
        num_samples: draws per epoch, of all processes together; N if None. Rounded up to a multiple of `num_replicas`.
        num_replicas: number of processes.
        rank: of this process, below `num_replicas`.
        seed: the same in all processes.
    """

    draws: int
    num_replicas: int
    rank: int
    seed: int
    epoch: int

    def __init__(
        self,
        labels: Tensor | np.ndarray,
        *,
        exponent: float = 1.0,
        num_samples: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must lie in 0 … num_replicas − 1 = {num_replicas - 1}, got {rank}")
        self.set_labels(labels)
        draws = len(self.labels) if num_samples is None else num_samples
        if draws < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}")
        self.exponent = exponent
        self.draws = -(-draws // num_replicas) * num_replicas
        self.num_replicas, self.rank, self.seed = num_replicas, rank, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other samples than in other epochs."""
        self.epoch = epoch

    def set_labels(self, labels: Tensor | np.ndarray) -> None:
        """Use these labels (N,) from the next iteration on, for instance after the mixture has been refitted."""
        given = torch.as_tensor(labels).cpu()
        if given.dim() != 1 or given.is_floating_point() or len(given) == 0:
            raise ValueError(
                f"labels must be integers of shape (N,) with N ≥ 1, got {given.dtype} of shape {tuple(given.shape)}"
            )
        self.labels = given

    def __repr__(self) -> str:
        return (
            f"ClusterBalancedSampler({len(self.labels)} samples in {len(self.labels.unique())} clusters, "
            f"exponent={self.exponent}, {len(self)} draws as rank {self.rank} of {self.num_replicas})"
        )

    def __len__(self) -> int:
        return self.draws // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        _, labels, counts = self.labels.unique(return_inverse=True, return_counts=True)
        clusters = torch.multinomial(
            counts.double() ** (1 - self.exponent), self.draws, replacement=True, generator=generator
        )
        drawn = torch.empty_like(clusters)
        draws = clusters.bincount(minlength=len(counts))
        drawn[clusters.argsort(stable=True)] = _turns(labels, counts, draws, generator)
        yield from drawn[self.rank :: self.num_replicas].tolist()


def _turns(labels: Tensor, counts: Tensor, draws: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of each cluster, cluster by cluster, that take turns in an order drawn anew for every round.

    Args:
        labels: (N,) clusters 0 … C−1 of the samples.
        counts: (C,) samples in each.
        draws: (C,) how many to draw from each.
        generator: source of randomness.
    """
    rounds = -(-draws // counts)
    copies = rounds[labels]
    samples = torch.arange(len(labels)).repeat_interleave(copies)
    turn = torch.arange(len(samples)) - (copies.cumsum(0) - copies).repeat_interleave(copies)
    group = (rounds.cumsum(0) - rounds)[labels[samples]] + turn  # one for each round of each cluster
    chance = torch.rand(len(samples), generator=generator, dtype=torch.float64).argsort()
    samples = samples[chance[group[chance].argsort(stable=True)]]
    length = rounds * counts  # of each cluster, of which the last round may be cut short
    place = torch.arange(len(samples)) - (length.cumsum(0) - length).repeat_interleave(length)
    return samples[place < draws.repeat_interleave(length)]
