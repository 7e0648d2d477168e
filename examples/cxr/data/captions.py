"""Captions from labels: the "meta labels" that CXR-CML trains its text encoder on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class CaptionStyle:
    """How the findings of an image become a sentence.

    Attributes:
        finding: says one finding; "{}" stands for its name.
        separator: between findings.
        lowercase: writes the names in lower case instead of as the label file does.
        empty: caption of an image without findings; None leaves it without a caption, and so without a caption loss.
    """

    finding: str = "{} is present"
    separator: str = ", "
    lowercase: bool = True
    empty: str | None = None

    def __post_init__(self) -> None:
        """Refuses a template without a place for the name."""
        if "{}" not in self.finding:
            raise ValueError(f'finding: got {self.finding!r}, need a template with "{{}}" where the name goes')


PAPER = CaptionStyle()
"""As the paper's example: "adenopathy is present, pulmonary effusion is present"."""

RELEASED = CaptionStyle(finding="{} is present.", separator=" ", lowercase=False, empty="")
"""As the authors' released code, whose caption of an image without findings is the empty text."""


def captions(
    labels: npt.NDArray[np.bool_], label_names: Sequence[str], style: CaptionStyle = PAPER
) -> list[str | None]:
    """Caption of each image, naming its findings in the order of the label file.

    Args:
        labels: (n_images, n_labels), whether the finding is present.
        label_names: the findings.
        style: how to say it.
    """
    if labels.ndim != 2 or labels.shape[1] != len(label_names):
        raise ValueError(
            f"labels: got shape {labels.shape}, need (n_images, {len(label_names)}), a column per label name"
        )
    names = [name.lower() if style.lowercase else name for name in label_names]
    phrases = [style.finding.replace("{}", name) for name in names]
    return [
        style.separator.join(phrases[i] for i in np.flatnonzero(row)) if row.any() else style.empty for row in labels
    ]
