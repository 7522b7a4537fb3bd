"""The preprocessing of picture encoders on tensors, with gradients."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Fit = Literal["crop", "crop_rounded", "pad", "stretch"]


@dataclass(frozen=True)
class Pixels:
    """Pictures (batch, 1 to 4, h, w) around [0, 1] -> normalised (batch, 3, size, size), what an encoder reads.

    `fit` says how another shape becomes a square: the shortest side is fitted and the centre cropped (as transformers'
    CLIP processor cuts, or at torchvision's rounded offset, which differs by a pixel where the margin leaves 3 over 4);
    the longest side is fitted and the rest padded with black; or both sides are stretched.

    Always with antialias, which keeps within 0.002 of the PIL path on average; without it the difference is ten times
    larger.
    """

    size: int
    fit: Fit = "crop"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    mode: Literal["bicubic", "bilinear"] = "bicubic"

    def __call__(self, images: Tensor) -> Tensor:
        return self.normalise(self.square(as_rgb(images).float().clamp(0, 1)))

    def square(self, images: Tensor) -> Tensor:
        """(batch, 3, h, w) in [0, 1] -> (batch, 3, size, size) in [0, 1]."""
        size = self.size
        height, width = images.shape[-2:]
        short, long = min(height, width), max(height, width)
        if self.fit == "stretch":
            return self._resize(images, size, size)
        if self.fit == "pad":
            images = self._resize(images, max(1, round(height * size / long)), max(1, round(width * size / long)))
            down, across = size - images.shape[-2], size - images.shape[-1]
            return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))
        longer = int(size * long / short)
        images = self._resize(images, *((longer, size) if height > width else (size, longer)))
        down, across = images.shape[-2] - size, images.shape[-1] - size
        top, left = (round(down / 2), round(across / 2)) if self.fit == "crop_rounded" else (down // 2, across // 2)
        return images[..., top : top + size, left : left + size]

    def normalise(self, images: Tensor) -> Tensor:
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(3, 1, 1)
        return (images - mean) / std

    def _resize(self, images: Tensor, height: int, width: int) -> Tensor:
        if images.shape[-2:] == (height, width):
            return images
        # Bicubic overshoots at edges; PIL's pictures cannot.
        return F.interpolate(images, (height, width), mode=self.mode, antialias=True, align_corners=False).clamp(0, 1)


def as_rgb(images: Tensor) -> Tensor:
    """(batch, channels, h, w) -> (batch, 3, h, w): grey is repeated and alpha dropped, as PIL's convert("RGB") does."""
    channels = images.shape[1]
    if channels in (2, 4):
        images = images[:, : channels - 1]
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)
