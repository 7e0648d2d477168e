"""Texts as a CLIP model reads them: each different caption tokenised once, images pointing at theirs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cxr.clip import ClipModel
from cxr.data.captions import PAPER
from cxr.simulation.dictation import DENIALS, DEVICE_FRAMES, FRAMES, NOISE, NORMAL
from cxr.simulation.findings import FINDINGS
from cxr.simulation.hardware import DEVICES
from cxr.simulation.prevalence import LABELS


@dataclass(frozen=True)
class Texts:
    """The captions of N images.

    Attributes:
        tokens: (U, L) the different captions.
        ids: (N, M) which captions an image has, one for each epoch in turn; -1 for none.
    """

    tokens: Tensor
    ids: Tensor

    def of(self, rows: Tensor) -> Texts:
        """The captions of these images alone: the others have none."""
        ids = torch.full_like(self.ids, -1)
        ids[rows] = self.ids[rows]
        return replace(self, ids=ids)


@dataclass(frozen=True)
class Captions:
    """The captions of a batch of B images.

    Attributes:
        tokens: (U, L) the different captions, each once.
        position: (B,) which of them an image has.
        ids: (B,) their numbers among all captions; -1 for an image without one.
    """

    tokens: Tensor
    position: Tensor
    ids: Tensor

    @property
    def given(self) -> Tensor:
        """Which images have one: (B,)."""
        return self.ids >= 0

    def spread(self, different: Tensor) -> Tensor:
        """What holds of each different caption (U, …) as what holds of each image (B, …); zeros without a caption."""
        return different[self.position] * self.given.view(-1, *[1] * (different.ndim - 1))

    def embeddings(self, model: ClipModel) -> Tensor:
        """Embeddings (B, d) by a model; zeros where there is no caption. One that occurs twice is encoded once."""
        return self.spread(model.encode_text(self.tokens))


def captions_of(texts: Texts, rows: Tensor, epoch: int, device: torch.device) -> Captions:
    """The captions that the images `rows` have in an epoch."""
    ids = texts.ids[rows, epoch % texts.ids.shape[1]]
    different, position = ids.clamp(min=0).unique(return_inverse=True)
    return Captions(texts.tokens[different].to(device), position.to(device), ids.to(device))


def tokenize(model: ClipModel, captions: Sequence[Sequence[str | None]]) -> Texts:
    """Tokenise the captions of N images: as many for each image, None where it has none."""
    different = list(dict.fromkeys(caption for row in captions for caption in row if caption is not None))
    if not different:
        raise ValueError("captions: no image has one, so there is nothing to train on")
    number: dict[str | None, int] = {None: -1, **{caption: i for i, caption in enumerate(different)}}
    return Texts(model.tokenize(different), torch.tensor([[number[caption] for caption in row] for row in captions]))


def vocabulary() -> Iterable[str]:
    """What a small model's tokenizer is trained on: the same for every data set, so that checkpoints can be shared."""
    names = [label.lower() for label in LABELS]
    how = (("mild ", "left "), ("moderate ", "right "), ("severe ", "bilateral "))
    findings = [
        text.format(s=s, side=side) for finding in FINDINGS.values() for text in finding.wording for s, side in how
    ]
    yield from names
    yield from (PAPER.finding.replace("{}", name) for name in names)
    yield from (frame.format(text) for frame in (*FRAMES, *DENIALS) for text in (*names, *findings))
    yield from (frame.format(device) for frame in DEVICE_FRAMES for device in DEVICES)
    yield from NORMAL
    yield from NOISE
