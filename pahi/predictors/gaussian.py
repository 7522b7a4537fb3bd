"""Gaussian predictors of the starting noise: x_T = mu + sigma * eps.

    standard   mu = 0, sigma = 1
    scale      mu = 0, one sigma for every number of every latent
    hpi        one global (mu, log sigma), the shape of one latent
    pahi       (mu, log sigma)(c) = (mu, log sigma)_HPI + h(e(c)), h a two-layer MLP whose last layer starts at zero

Kim, Wang, Qiu 2024, "Model-Agnostic Human Preference Inversion in Diffusion Models". log sigma is clamped to [-2, 1].
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor, zeroed

LOG_SIGMA_RANGE = (-2.0, 1.0)


def kl_per_dimension(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL( N(mu, sigma^2) || N(0, I) ) / d = mean( (mu^2 + sigma^2 - 1) / 2 - log sigma ): (batch, ...) -> (batch,)."""
    return ((mu.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma).flatten(1).mean(1)


def dense_head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A two-layer MLP whose last layer starts at zero."""
    last = zeroed(nn.Linear(hidden, outputs))
    return nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.GELU(), last)


class GaussianPredictor(NoisePredictor):
    """Standard, scale, HPI and PAHI, and what other files make of the last; the divergence is the Gaussians' KL."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "standard": Kind(
            "Standard", "Standard Gaussian", "Standard Gaussian noise: nothing was learned.", adaptive=False
        ),
        "scale": Kind("Scale", "One scale for all noise", "One learned scale for all starting noise.", adaptive=False),
        "hpi": Kind(
            "HPI",
            "HPI (one noise for all prompts)",
            "One learned mean and scale of the starting noise for all prompts (human preference inversion).",
            adaptive=False,
        ),
        "pahi": Kind(
            "PAHI",
            "PAHI (noise from the prompt)",
            "Mean and scale of the starting noise, predicted from the prompt (prompt-adaptive human preference "
            "inversion).",
        ),
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        base = (1, 1, 1) if self.kind == "scale" else self.latent_shape
        self.mu = nn.Parameter(torch.zeros(base), requires_grad=self.kind != "scale")
        self.log_sigma = nn.Parameter(torch.zeros(base))
        if self.kind != "scale":
            self.head = self.make_head()

    def make_head(self) -> nn.Module:
        """What turns a pooled embedding into what is added to (mu, log sigma); zero until it is trained."""
        return dense_head(self.pooled_width, self.hidden, 2 * int(torch.Size(self.latent_shape).numel()))

    def distribution(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, pooled_width) -> mu and log sigma, each (batch, *latent_shape), float32."""
        mu = self.mu.expand(len(pooled), *self.latent_shape)
        log_sigma = self.log_sigma.expand(len(pooled), *self.latent_shape)
        if self.kind not in ("standard", "scale", "hpi"):
            shift = self.head(pooled.float()).view(len(pooled), 2, *self.latent_shape)
            mu, log_sigma = mu + shift[:, 0], log_sigma + shift[:, 1]
        return mu, log_sigma.clamp(*LOG_SIGMA_RANGE)

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_T = mu + sigma * eps, and the KL."""
        mu, log_sigma = self.distribution(pooled)
        return mu + log_sigma.exp() * eps, kl_per_dimension(mu, log_sigma)
