"""PAHI with fewer parameters: a dense head has two numbers for every hidden unit and number of a latent.

The head is a sum of outer products over channels, rows and columns, whose factors come from the prompt. It begins at
the standard Gaussian and trains the base (mu, log sigma) with it.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from pahi.predictors.base import Kind, zeroed
from pahi.predictors.gaussian import GaussianPredictor

RANK = 8  # hidden units a term


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
