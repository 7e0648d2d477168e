"""Mining of semi-hard triplets without a tensor of all triplets."""

from __future__ import annotations

import torch
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_matches_and_diffs
from torch import Tensor

# Elements of one (anchors, references) temporary.
BLOCK_ELEMENTS = 2**22


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
        matches, differences = get_matches_and_diffs(labels, ref_labels)
        triplets = []
        rows = max(1, BLOCK_ELEMENTS // max(1, len(ref_emb)))
        for start in range(0, len(embeddings), rows):
            block = slice(start, start + rows)
            anchor, positive, negative = self._mine_block(
                distances[block], matches[block].bool(), differences[block].bool()
            )
            triplets.append((anchor + start, positive, negative))
        anchors, positives, negatives = zip(*triplets)
        return torch.cat(anchors), torch.cat(positives), torch.cat(negatives)

    def _mine_block(self, distances: Tensor, matches: Tensor, differences: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triplets of some anchors, from their rows of the distances and of the masks: (b, M)."""
        ascending, order = distances.masked_fill(~differences, float("inf")).sort(dim=1)
        anchor, positive = matches.nonzero(as_tuple=True)
        own = distances[anchor, positive]
        # The positives of each anchor side by side: far fewer to search for than there are references.
        count = matches.sum(1)
        column = torch.arange(len(anchor), device=anchor.device) - (count.cumsum(0) - count)[anchor]
        queries = distances.new_full((len(distances), int(count.max())), float("inf"))
        queries[anchor, column] = own
        place = torch.searchsorted(ascending, queries, right=True)[anchor, column].clamp_(max=distances.shape[1] - 1)
        nearest = ascending[anchor, place]
        semihard = (nearest > own) & (nearest < own + self.margin)
        return anchor[semihard], positive[semihard], order[anchor[semihard], place[semihard]]
