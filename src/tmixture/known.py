"""What rows of known class say before EM begins: where components start, and what their means are held at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tmixture import distributed
from tmixture.data.chunks import Chunks
from tmixture.initialization import kmeans_plus_plus
from tmixture.maximization import Rules
from tmixture.numerics import exact
from tmixture.sampling import Sample
from tmixture.shrinkage import Anchors


@dataclass(frozen=True)
class KnownRows:
    """What the rows say whose class is known.

    Attributes:
        means: (K, d), of the rows that may only belong to some components, in equal shares; zero where there are none.
        rows: (K,), how many they are.
    """

    means: Tensor
    rows: Tensor

    @classmethod
    def of(cls, chunks: Chunks, *, shared: bool) -> KnownRows | None:
        """One pass over the data, in all processes that share it; None if no row of any is known."""
        labelled = torch.tensor([float(chunks.labels is not None)], device=chunks.device)
        if shared:
            distributed.sum_in_place([labelled])
        if not labelled:
            return None
        sums = exact(torch.zeros(chunks.n_components, chunks.n_features, device=chunks.device))
        weight, rows = torch.zeros_like(sums), sums.new_zeros(chunks.n_components)
        for chunk in chunks:
            if chunk.allowed is None:
                continue
            share = exact(chunk.allowed & ~chunk.allowed.all(1, keepdim=True))
            share = share / share.sum(1, keepdim=True).clamp(min=1)
            weighted = share if chunk.weight is None else share * exact(chunk.weight)[:, None]
            values = exact(chunk.x)
            sums += weighted.T @ values.nan_to_num(0.0)
            weight += weighted.T @ exact(~values.isnan())
            rows += share.sum(0)
        if shared:
            distributed.sum_in_place([sums, weight, rows])
        return cls(sums / weight.clamp(min=1e-30), rows) if rows.any() else None

    @property
    def alone(self) -> Tensor:
        """Mask (K,) of the components that are the only one of their class."""
        known = self.rows > 0
        same = (self.means[:, None] == self.means).all(2) & known & known[:, None]
        return known & (same.sum(1) == 1)

    def centres(self, sample: Sample, variance: Tensor, generator: torch.Generator | None) -> Tensor:
        """Centres (K, d) to start from: the means of the classes, and rows far from them for all other components.

        Several components of one class start beside its mean, in random directions.
        """
        known, centres = self.rows > 0, self.means.clone()
        several = known & ~self.alone
        noise = torch.randn(int(several.sum()), centres.shape[1], generator=generator, dtype=torch.float64)
        centres[several] += noise.to(centres) * variance.sqrt().to(centres) / 2
        if not known.all():
            found = kmeans_plus_plus(
                sample.x, sample.weight, int((~known).sum()), generator, known=centres[known].to(sample.x)
            )
            centres[~known] = found.to(centres)
        return centres


def anchored(rules: Rules, init: str | Tensor, anchor_rows: float, known: KnownRows | None, like: Tensor) -> Rules:
    """The rules with what the means are held at, too, and which components have rows of their own.

    Args:
        rules: without either.
        init: as of `StudentTMixture`; given means are anchors where no row is known.
        anchor_rows: as of `StudentTMixture`.
        known: what is known of rows.
        like: means (K, d) of the dtype and on the device of the parameters.
    """
    if known is None and not isinstance(init, Tensor):
        return rules
    means, rows = torch.zeros_like(like), torch.zeros_like(like[:, 0])
    if isinstance(init, Tensor):
        means, rows = init.to(means), torch.full_like(rows, anchor_rows)
    if known is not None:
        means = torch.where((known.rows > 0)[:, None], known.means.to(means), means)
        rows = torch.where(known.rows > 0, known.alone * anchor_rows, rows)
    kept = (rows > 0) if known is None else (rows > 0) | (known.rows > 0)
    anchors = (Anchors(exact(means), exact(rows)),) if rows.any() else ()
    rules = replace(rules, anchors=rules.anchors + anchors)
    return rules.keeping(kept.cpu()) if kept.any() else rules
