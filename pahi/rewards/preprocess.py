"""CLIP's preprocessing on tensors, with gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(images: Tensor, size: int) -> Tensor:
    """(batch, 3, h, w) around [0, 1] -> normalised (batch, 3, size, size): clamp, shortest side, centre crop.

    Bicubic with antialias, which keeps within 0.002 of the PIL path on average; without it the difference is ten times
    larger.
    """
    images = images.float().clamp(0, 1)
    height, width = images.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, int(height * scale)), max(size, int(width * scale)))
        images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    height, width = images.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    images = images[..., top : top + size, left : left + size]
    mean = torch.tensor(CLIP_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=images.device).view(3, 1, 1)
    return (images - mean) / std
