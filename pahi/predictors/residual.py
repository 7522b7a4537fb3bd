"""Residual predictors: x_T = eps + f(eps, c), f a small U-shaped network whose last layer starts at zero.

Eyring et al. 2025, "Noise Hypernetworks", whose divergence ||f||^2 / 2 this is, a dimension. A Gaussian a prompt treats
all noise alike; f sees what it is given: it can lead bad noise to the nearest good one and leave good noise alone.

    residual   as published
    refined    x_T is brought back to the length of eps, so that it keeps to the shell where Gaussian noise lies
"""

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor, zeroed

COARSEST = 4  # side of the level where every place sees every other
WIDEST = 4  # times `hidden` channels


class ResidualPredictor(NoisePredictor):
    """A network of `hidden` channels at full size, that reads noise and prompt."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "residual": Kind(
            "Residual",
            "Residual of the prompt and the noise",
            "A learned change of the starting noise, that reads the prompt and the noise itself.",
        ),
        "refined": Kind(
            "Refined",
            "Refined noise (residual of the prompt and the noise, at its length)",
            "A learned change of the starting noise at its own length, that reads the prompt and the noise itself.",
        ),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels, height, width = self.latent_shape
        levels = 0
        while min(height, width) >= 2 * COARSEST and height % 2 == width % 2 == 0:
            levels, height, width = levels + 1, height // 2, width // 2
        widths = [self.hidden * min(2**i, WIDEST) for i in range(levels + 1)]
        self.words = nn.Sequential(nn.LayerNorm(self.pooled_width), nn.Linear(self.pooled_width, 128), nn.GELU())
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.read = nn.ModuleList(Block(w, 128) for w in widths)
        self.across = nn.MultiheadAttention(widths[-1], 4, batch_first=True)
        self.middle = Block(widths[-1], 128)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.write = nn.ModuleList(Block(w, 128) for w in widths[:-1])
        self.last = zeroed(nn.Conv2d(widths[0], channels, 3, padding=1))

    def residual(self, pooled: Tensor, eps: Tensor) -> Tensor:
        """f(eps, c), of eps's shape."""
        words = self.words(pooled.float())
        x = self.read[0](self.first(eps), words)
        kept = []
        for down, read in zip(self.down, self.read[1:], strict=True):
            kept.append(x)
            x = read(down(x), words)
        places = x.flatten(2).transpose(1, 2)
        x = x + self.across(places, places, places, need_weights=False)[0].transpose(1, 2).view_as(x)
        x = self.middle(x, words)
        for up, write, beside in zip(reversed(self.up), reversed(self.write), reversed(kept), strict=True):
            x = write(F.interpolate(up(x), scale_factor=2.0, mode="nearest") + beside, words)
        return self.last(F.silu(x))

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_T = eps + f(eps, c), at the length of eps where it is `refined`, and the divergence."""
        f = self.residual(pooled, eps)
        x = eps + f
        if self.kind == "refined":
            x = x * (_length(eps) / _length(x).clamp(min=1e-6)).view(-1, 1, 1, 1)
        return x, f.square().flatten(1).mean(1) / 2


def _length(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v.flatten(1), dim=1)


class Block(nn.Module):
    """A residual block whose channels the prompt scales and shifts."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(next(g for g in (8, 4, 2, 1) if width % g == 0), width, affine=False)
        self.film = nn.Linear(words, 2 * width)
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        """(batch, width, h, w) and (batch, words) -> the first's shape."""
        scale, shift = self.film(words)[:, :, None, None].chunk(2, 1)
        return x + self.two(F.silu(self.one(F.silu(self.norm(x) * (1 + scale) + shift))))
