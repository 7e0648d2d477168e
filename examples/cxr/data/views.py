"""Distorted views of an image, which a self-supervised loss holds for the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad


@dataclass(frozen=True)
class Distortion:
    """A random crop, resized, with other contrast and brightness, perhaps mirrored or blurred.

    Colours are left out: an X-ray has none, on which saturation and hue change nothing.

    Attributes:
        area: the least and the largest share of the image that a crop holds.
        contrast: of both contrast and brightness, by how much they change at most, as a share.
        flip: how often a view is mirrored.
        blur: how often it is blurred, with a standard deviation of 0.1 to 2 pixels for images of 224.
    """

    area: tuple[float, float]
    contrast: float
    flip: float
    blur: float

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A view of each image (B, C, H, W); the generator is on the CPU, so that every device draws the same."""

        def draw(low: float, high: float) -> Tensor:
            return torch.empty(len(images)).uniform_(low, high, generator=generator).to(images)

        share, ratio = draw(*self.area), draw(math.log(3 / 4), math.log(4 / 3)).exp()
        width, height = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
        x, y = (1 - width) * draw(-1, 1), (1 - height) * draw(-1, 1)
        mirrored = torch.where(draw(0, 1) < self.flip, -width, width)
        zero = torch.zeros_like(x)
        affine = torch.stack([mirrored, zero, x, zero, height, y], dim=1).view(-1, 2, 3)
        grid = affine_grid(affine, list(images.shape), align_corners=False)
        views = grid_sample(images, grid, padding_mode="border", align_corners=False)
        views = blurred(views, draw(0.1, 2.0) * images.shape[-1] / 224, draw(0, 1) < self.blur)
        contrast, brightness = draw(-self.contrast, self.contrast), draw(-self.contrast, self.contrast)
        return views * (1 + contrast).view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)


RADIOGRAPHS = Distortion(area=(0.5, 1.0), contrast=0.2, flip=0.0, blur=0.5)
"""For chest X-rays: crops that still show a lung, and never mirrored, as the heart lies left."""

PHOTOGRAPHS = Distortion(area=(0.08, 1.0), contrast=0.4, flip=0.5, blur=0.5)
"""As SimCLR and SLIP distort photographs, whose labels have no sides and no small spots."""


def blurred(images: Tensor, sigma: Tensor, chosen: Tensor) -> Tensor:
    """The images (B, C, H, W), those chosen (B,) blurred by a Gaussian of sigma (B,) pixels."""
    radius = max(1, math.ceil(3 * float(sigma.max())))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (offsets / sigma[:, None]).square()).softmax(1)  # (B, 2r + 1), sums of one
    kernel = torch.where(chosen[:, None], kernel, (offsets == 0).to(images))
    n, c, height, width = images.shape
    kernels = kernel.repeat_interleave(c, dim=0)[:, None]
    rows = pad(images.reshape(1, n * c, height, width), [radius] * 4, mode="replicate")
    rows = conv2d(rows, kernels[:, :, None, :], groups=n * c)
    return conv2d(rows, kernels[:, :, :, None], groups=n * c).view_as(images)
