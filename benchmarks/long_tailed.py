"""Long-tailed images of which few have labels: scikit-learn's digits, and CIFAR-10 from a zip file of pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

LARGEST, SMALLEST, TEST_DIGITS = 110, 5, 65
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
N_CLASSES, N_RARE = 10, 5  # of both


@dataclass(frozen=True)
class Split:
    """Images (n, c, h, w) and labels (n,) to train on and to test with, and the indices of the labelled ones."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    labelled: Tensor

    @property
    def known(self) -> Tensor:
        """The labels (n,) of the training images, −1 where unknown."""
        known = torch.full_like(self.y, -1)
        known[self.labelled] = self.y[self.labelled]
        return known


@dataclass(frozen=True)
class DataSet:
    """What an experiment needs to know of a data set.

    Attributes:
        title: its name in words.
        width: of the embeddings.
        split: from a seed, the number of labelled images of each class and a path, for data that lie in a file.
        encoder: a new network from a seed.
        augmented: another view of each image.
        labelled_batch: labelled images in a step, each in two views.
        shared_steps: of the base, which all arms start from.
        steps: of each arm after them.
    """

    title: str
    width: int
    split: Callable[[int, int, Path | None], Split]
    encoder: Callable[[int], nn.Module]
    augmented: Callable[[Tensor, torch.Generator], Tensor]
    labelled_batch: int
    shared_steps: int
    steps: int


# ------------------------------------------------------------------ digits


def split_digits(seed: int, n_labelled: int, path: Path | None = None) -> Split:
    """110 … 5 training images of a class, `n_labelled` of each with labels, and 64 or 65 test images of each class."""
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target)
    generator = torch.Generator().manual_seed(seed)
    sizes = np.geomspace(LARGEST, SMALLEST, N_CLASSES).round().astype(int)
    train, test, labelled = [], [], []
    for label, size in enumerate(sizes.tolist()):
        rows = (y == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        labelled.append(sum(map(len, train)) + torch.arange(n_labelled))
        train.append(rows[:size])
        test.append(rows[LARGEST : LARGEST + TEST_DIGITS])
    index, test_index = torch.cat(train), torch.cat(test)
    return Split(x[index], y[index], x[test_index], y[test_index], torch.cat(labelled))


def digits_encoder(seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 32),
    )  # fmt: skip


def augmented_digits(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to a pixel, brightened or darkened, and noisy."""
    moved = shifted(x, 1, generator)
    brightness = 0.7 + 0.6 * torch.rand(len(x), 1, 1, 1, generator=generator)
    return moved * brightness + 0.1 * torch.randn(x.shape, generator=generator)


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) moved by up to so many pixels each way, zeros coming in."""
    n, _, height, width = x.shape
    shift = torch.randint(0, 2 * most + 1, (2, n), generator=generator)
    padded = nn.functional.pad(x, (most, most, most, most))
    rows = (shift[0][:, None] + torch.arange(height))[:, None, :, None]
    columns = (shift[1][:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]


# ------------------------------------------------------------------ CIFAR-10


@cache
def read_pictures(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """All pictures `part/<class>/*.jpg` of a zip file as bytes (n, 3, 32, 32), and their labels (n,)."""
    pixels, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            folders = name.split("/")
            if name.endswith(".jpg") and part in folders:
                pixels.append(np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")))
                labels.append(CIFAR_CLASSES.split().index(folders[-2]))
    return torch.from_numpy(np.stack(pixels)).movedim(3, 1), torch.tensor(labels)


def split_cifar(seed: int, n_labelled: int, path: Path | None = None) -> Split:
    """All training images, `n_labelled` of each class, drawn by the seed, with labels; all test images."""
    if path is None:
        raise SystemExit(
            "--path: the zip file of CIFAR-10-LT is needed, with train/<class>/*.jpg and test/<class>/*.jpg"
        )
    x, y = read_pictures(path, "train")
    test_x, test_y = read_pictures(path, "test")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    labelled = torch.cat([order[y[order] == label][:n_labelled] for label in range(N_CLASSES)])
    return Split(as_floats(x), y, as_floats(test_x), test_y, labelled)


def as_floats(pixels: Tensor) -> Tensor:
    """Bytes as numbers with a mean of about 0 and a spread of about 1."""
    return pixels.float() / 64 - 2


def cifar_encoder(seed: int) -> nn.Module:
    """Four convolutions with batch normalization and a linear layer."""
    torch.manual_seed(seed)
    widths, layers = (3, 32, 64, 96, 128), []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64))


def augmented_pictures(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to four pixels, mirrored or not, with other contrast, brightness, colours, or none."""

    def draw(*shape: int) -> Tensor:
        return torch.rand(len(x), *shape, 1, 1, generator=generator)

    x = shifted(x, 4, generator)
    x = torch.where(draw(1) < 0.5, x.flip(3), x)
    x = torch.where(draw(1) < 0.2, x.mean(1, keepdim=True), x * (0.8 + 0.4 * draw(3)))
    return x * (0.6 + 0.8 * draw(1)) + 0.8 * (draw(1) - 0.5)


DATA_SETS = {
    "digits": DataSet("scikit-learn's digits", 32, split_digits, digits_encoder, augmented_digits, 0, 0, 400),
    "cifar10-lt": DataSet("CIFAR-10-LT", 64, split_cifar, cifar_encoder, augmented_pictures, 40, 600, 300),
}
