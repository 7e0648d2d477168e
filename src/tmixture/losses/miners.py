"""Mining of semi-hard triplets without a tensor of all triplets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

# Elements of one (anchors, references) temporary.
BLOCK_ELEMENTS = 2**22
# Elements that are worth a thread to sort them.
ELEMENTS_PER_THREAD = 2**16


class SemiHardMiner(BaseMiner):
    """One triplet for each pair of anchor and positive: with the nearest negative that is farther than the positive.

    The triplet is kept if the negative is within the margin, d(a, p) < d(a, n) < d(a, p) + margin (Schroff et al. 2015,
    FaceNet). A pair whose positive is farther than every negative, as that of a mislabelled point, has none.
    Time is O(B² log B) and memory O(B²), for B³ possible triplets.

    Args:
        margin: in units of the distance.
        distance: a distance of pytorch-metric-learning; Euclidean on L2-normalised embeddings if None.
    """

    def __init__(self, margin: float = 0.3, distance: BaseDistance | None = None) -> None:
        super().__init__(distance=distance)
        self.margin = margin

    def extra_repr(self) -> str:
        """Its margin."""
        return f"margin={self.margin}"

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of anchors in `embeddings`, and of positives and negatives in `ref_emb`."""
        distances = self.distance(embeddings, ref_emb)
        if self.distance.is_inverted:
            distances = -distances
        triplets = []
        rows = max(1, BLOCK_ELEMENTS // max(1, len(ref_emb)))
        for start in range(0, len(embeddings), rows):
            block = slice(start, start + rows)
            same = labels[block, None] == ref_labels
            matches = same
            if ref_labels is labels:  # an anchor is not its own positive
                matches = same.clone()
                matches.diagonal(start).fill_(False)
            anchor, positive, negative = self._mine_block(distances[block], matches, same)
            triplets.append((anchor + start, positive, negative))
        anchors, positives, negatives = zip(*triplets)
        return torch.cat(anchors), torch.cat(positives), torch.cat(negatives)

    def _mine_block(self, distances: Tensor, matches: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triplets of some anchors, given the rows (b, M) of the distances and of two masks.

        Args:
            distances: of the anchors from all references.
            matches: the references that are an anchor's positives.
            same: those that have its label, itself included; the others are its negatives.
        """
        ascending, order = sort_rows(distances.masked_fill(same, float("inf")))
        anchor, positive = matches.nonzero(as_tuple=True)
        own = distances[anchor, positive]
        # The positives of each anchor side by side: far fewer to search for than there are references.
        count = matches.sum(1)
        column = torch.arange(len(anchor), device=anchor.device) - (count.cumsum(0) - count)[anchor]
        queries = distances.new_full((len(distances), int(count.max())), float("inf"))
        queries[anchor, column] = own
        place = torch.searchsorted(ascending, queries, right=True)[anchor, column].clamp_(max=distances.shape[1] - 1)
        nearest = ascending[anchor, place]
        kept = ((nearest > own) & (nearest < own + self.margin)).nonzero()[:, 0]
        return anchor[kept], positive[kept], order[anchor[kept], place[kept]]


def sort_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row (n, m) in ascending order, and the columns that its entries come from."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort(dim=1)
    # NumPy sorts by vector instructions where the processor has them, in a fifth of torch's time.
    parts = np.array_split(x.numpy(), max(1, min(torch.get_num_threads(), x.numel() // ELEMENTS_PER_THREAD)))
    with ThreadPoolExecutor() as threads:
        orders = list(threads.map(partial(np.argsort, axis=1), parts))
    order = torch.from_numpy(np.concatenate(orders))
    return x.gather(1, order), order
