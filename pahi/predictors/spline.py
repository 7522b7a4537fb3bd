"""A learned monotone map of each low frequency of the noise, prompt by prompt: any density, where PAHI has Gaussians.

    x_T = eps + sum_i ( phi_i(z_i; c) - z_i ) b_i,    z_i = <eps, b_i>

b_i are the lowest frequencies of every channel (an orthonormal cosine basis), so the z_i are independent standard
normal numbers, and phi_i is a rational-quadratic spline (Durkan et al. 2019, "Neural Spline Flows"), the identity
beyond EDGE. A one-step generator decides layout and colours by low frequencies; between two decisions it shows both at
once. A Gaussian can only move away from there as a whole, and takes the other decisions along. A spline stretches the
line where the noise is bad and keeps every decision within reach. Its KL from the prior is exact in expectation:

    KL(q || N(0, I)) = E[ ( ||x_T||^2 - ||eps||^2 ) / 2 - sum_i log phi_i'(z_i; c) ]

It is a few nats where PAHI's is a hundred, so `train.beta`, which weighs the KL a dimension, wants to be some hundred
times PAHI's.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor
from pahi.predictors.frequencies import cosines, lowest
from pahi.predictors.gaussian import dense_head

BINS = 16
EDGE = 3.0
FLATTEST = 1e-3  # of a bin's share of the line, and of the slope


class SplinePredictor(NoisePredictor):
    """A head of splines on a small network that reads the prompt."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "spline": Kind(
            "Spline",
            "Spline of the noise's low frequencies, by prompt",
            "A monotone map of each low frequency of the starting noise, predicted from the prompt.",
        )
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels, height, width = self.latent_shape
        rows, columns = cosines(height), cosines(width)
        self.numbers = channels * len(rows) * len(columns)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.base = nn.Parameter(torch.zeros(self.numbers, 3 * BINS - 1))
        self.head = dense_head(self.pooled_width, self.hidden, self.base.numel())

    def coordinates(self, eps: Tensor) -> Tensor:
        """Noise (batch, *latent_shape) -> z (batch, numbers): standard normal where the noise is."""
        return lowest(eps, self.rows, self.columns).flatten(1)  # type: ignore[arg-type]

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_T, and a draw of the KL, which may be below zero for one noise."""
        form = self.base + self.head(pooled.float()).view(-1, *self.base.shape)
        z = self.coordinates(eps)
        y, log_slope = spline(z, form)
        # Rounding apart, a spline of zeros is the identity: less that, an untrained one is so to the last bit.
        same, no_slope = spline(z, torch.zeros_like(form))
        moved, log_slope = y - same, log_slope - no_slope
        grid = moved.view(len(eps), eps.shape[1], len(self.rows), len(self.columns))  # type: ignore[arg-type]
        x = eps + torch.einsum("bcfg,fh,gw->bchw", grid, self.rows, self.columns)
        nats = ((z + moved / 2) * moved - log_slope).sum(1)
        return x, nats / eps[0].numel()


def spline(z: Tensor, form: Tensor) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic splines on [-EDGE, EDGE], and the identity beyond.

    z (...) and form (..., 3 BINS - 1): widths, heights and inner slopes before their softmax and softplus, zeros for
    the identity -> the value and the logarithm of the slope, (...) each.
    """
    inside = z.abs() < EDGE
    at = z.clamp(-EDGE, EDGE)
    widths, heights, slopes = form.split([BINS, BINS, BINS - 1], -1)
    xs, ys = _knots(widths), _knots(heights)
    steep = FLATTEST + F.softplus(slopes + math.log(math.expm1(1 - FLATTEST)))
    steep = F.pad(steep, (1, 1), value=1.0)
    k = (torch.searchsorted(xs.detach(), at[..., None], right=True) - 1).clamp(0, BINS - 1)
    x0, x1, y0, y1 = (_pick(knots, k + i) for knots in (xs, ys) for i in (0, 1))
    d0, d1 = _pick(steep, k), _pick(steep, k + 1)
    rise, t = (y1 - y0) / (x1 - x0), (at - x0) / (x1 - x0)
    bend = rise + (d0 + d1 - 2 * rise) * t * (1 - t)
    y = y0 + (y1 - y0) * (rise * t.square() + d0 * t * (1 - t)) / bend
    slope = rise.square() * (d1 * t.square() + 2 * rise * t * (1 - t) + d0 * (1 - t).square()) / bend.square()
    return torch.where(inside, y, z), torch.where(inside, slope.log(), 0.0)


def _knots(raw: Tensor) -> Tensor:
    """(..., BINS) -> (..., BINS + 1), from -EDGE to EDGE, rising."""
    share = FLATTEST + (1 - FLATTEST * BINS) * raw.softmax(-1)
    return F.pad(2 * EDGE * share.cumsum(-1), (1, 0)) - EDGE


def _pick(values: Tensor, k: Tensor) -> Tensor:
    return values.gather(-1, k)[..., 0]
