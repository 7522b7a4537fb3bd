"""PAHI with fewer parameters: a dense head has two numbers for every hidden unit and number of a latent.

    conv       a coarse grid of features from the prompt, enlarged by convolutions; hardly grows with the latent
    lowrank    sums of outer products over channels, rows and columns, whose factors come from the prompt

Both begin at the standard Gaussian and train the base (mu, log sigma) with them.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pahi.predictors.base import Kind, zeroed
from pahi.predictors.gaussian import GaussianPredictor

COARSEST = 8  # longest side of conv's first grid
RANK = 8  # hidden units a term of lowrank


class ConvHead(nn.Module):
    """(batch, pooled_width) -> (batch, 2 * channels, height, width); the last convolution starts at zero."""

    def __init__(self, pooled_width: int, hidden: int, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, *side = latent_shape
        sides = [tuple(side)]
        while max(sides[0]) > COARSEST:
            sides.insert(0, tuple(-(-n // 2) for n in sides[0]))  # odd sides are enlarged to their own size again
        self.sides, self.width = sides, max(4, hidden // 2)
        self.read = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, hidden), nn.GELU())
        self.grid = nn.Linear(hidden, self.width * sides[0][0] * sides[0][1])
        self.blocks = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in sides[1:])
        self.last = zeroed(nn.Conv2d(self.width, 2 * channels, 3, padding=1))

    def forward(self, pooled: Tensor) -> Tensor:
        x = self.grid(self.read(pooled)).view(len(pooled), self.width, *self.sides[0])
        for side, block in zip(self.sides[1:], self.blocks, strict=True):
            x = F.interpolate(F.gelu(x), side, mode="bilinear", align_corners=False)
            x = x + block(x)
        return self.last(F.gelu(x))


class LowRankHead(nn.Module):
    """(batch, pooled_width) -> (batch, 2, *latent_shape): sum_r a_r u_r v_r w_r, of which a starts at zero."""

    def __init__(self, pooled_width: int, hidden: int, latent_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.rank = latent_shape, max(1, hidden // RANK)
        self.read = nn.Sequential(nn.LayerNorm(pooled_width), nn.Linear(pooled_width, hidden), nn.GELU())
        self.factors = nn.Linear(hidden, 2 * self.rank * sum(latent_shape))
        # Factors of size 1, so that the first gradient of a is as large as a dense layer's.
        nn.init.normal_(self.factors.bias)
        self.weights = zeroed(nn.Linear(hidden, 2 * self.rank))

    def forward(self, pooled: Tensor) -> Tensor:
        x = self.read(pooled)
        factors = self.factors(x).view(len(x), 2, self.rank, sum(self.shape))
        u, v, w = factors.split(self.shape, dim=-1)
        a = self.weights(x).view(len(x), 2, self.rank)
        return torch.einsum("bmr,bmrc,bmrh,bmrw->bmchw", a, u, v, w)


class ConvPredictor(GaussianPredictor):
    """PAHI with a convolutional head."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "conv": Kind(
            "Conv",
            "PAHI with a convolutional head",
            "Mean and scale of the starting noise, predicted from the prompt as a grid that convolutions enlarge.",
        )
    }

    def make_head(self) -> nn.Module:
        return ConvHead(self.pooled_width, self.hidden, self.latent_shape)


class LowRankPredictor(GaussianPredictor):
    """PAHI with a head of low rank."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "lowrank": Kind(
            "Low rank",
            "PAHI with a head of low rank",
            "Mean and scale of the starting noise, predicted from the prompt as a sum of outer products.",
        )
    }

    def make_head(self) -> nn.Module:
        return LowRankHead(self.pooled_width, self.hidden, self.latent_shape)
