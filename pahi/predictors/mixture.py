"""Several Gaussians a prompt, of which the noise itself picks one: a prompt may have more than one good beginning.

    x_T = mu_k(c) + sigma_k(c) eps,    k = argmax_j sum_{i = j mod K} eps_i

With one Gaussian, every step of mu away from 0 is a step that all pictures of a prompt take together. Modes can move
apart instead. The divergence lets them: of KL(q || N(0, I)) = E x^2 / 2 - H(q) + const, the mixture's entropy H(q) has
no closed form, but lies between its components' and that of one Gaussian with the mixture's mean m and variance V,

    mean_k log sigma_k  <=  H(q) / d + const  <=  log(V) / 2,    V = mean_k (mu_k^2 + sigma_k^2) - m^2

(for equally likely modes). The middle of the two is taken: it is the KL where the modes agree, and less than the mean
of the components' own where they differ.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor, zeroed
from pahi.predictors.gaussian import LOG_SIGMA_RANGE

MODES = 4


class MixturePredictor(NoisePredictor):
    """A mixture of MODES Gaussians."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "mixture": Kind(
            "Mixture",
            "Several Gaussians a prompt",
            "Several Gaussians of starting noise, predicted from the prompt, among which the noise itself picks.",
        )
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mu = nn.Parameter(torch.zeros(MODES, *self.latent_shape))
        self.log_sigma = nn.Parameter(torch.zeros(MODES, *self.latent_shape))
        self.read = nn.Sequential(nn.LayerNorm(self.pooled_width), nn.Linear(self.pooled_width, self.hidden))
        self.mode = nn.Parameter(
            torch.randn(MODES, self.hidden)
        )  # a prompt moves the modes apart from its first step on
        self.last = zeroed(nn.Linear(self.hidden, 2 * int(torch.Size(self.latent_shape).numel())))

    def distributions(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, pooled_width) -> mu and log sigma of every mode, each (batch, MODES, *latent_shape), float32."""
        hidden = nn.functional.gelu(self.read(pooled.float())[:, None] + self.mode)
        shift = self.last(hidden).view(len(pooled), MODES, 2, *self.latent_shape)
        return self.mu + shift[:, :, 0], (self.log_sigma + shift[:, :, 1]).clamp(*LOG_SIGMA_RANGE)

    @staticmethod
    def choose(eps: Tensor) -> Tensor:
        """Which mode a noise falls to, (batch,): each has the same chance, and x_T given k is all but Gaussian."""
        flat = eps.flatten(1)
        return torch.stack([flat[:, k::MODES].sum(1) for k in range(MODES)], 1).argmax(1)

    def draw(self, pooled: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x_T, and the divergence of the whole mixture."""
        mu, log_sigma = self.distributions(pooled)
        rows, k = torch.arange(len(eps), device=eps.device), self.choose(eps)
        square = (mu.square() + (2 * log_sigma).exp()).mean(1)  # (batch, *latent_shape)
        variance = square - mu.mean(1).square()
        entropy = (log_sigma.mean(1) + variance.log() / 2) / 2
        divergence = ((square - 1) / 2 - entropy).flatten(1).mean(1)
        return mu[rows, k] + log_sigma[rows, k].exp() * eps, divergence
