"""What an arm adds to its objective."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn


class Stage(nn.Module):
    """What an arm adds to its objective: the base of all, which has no clusters."""

    def fit(self, images: Tensor, texts: Tensor) -> None:
        """Learn from embeddings (n, d) of the training part before the first epoch; nothing here."""

    @property
    def statistics(self) -> dict[str, float]:
        """Of the last batch."""
        return {}

    def predict(self, images: Tensor, texts: Tensor) -> npt.NDArray[np.int64]:
        """The cluster of each row of embeddings (n, d); -1 where there is none."""
        return np.full(len(images), -1)
