"""A Gaussian a prompt that stays on the shell where Gaussian noise lies: mu^2 + sigma^2 = 1, number by number.

    mu = tanh z,    sigma = 1 / cosh z,    z(c) = z + h(e(c)),    KL / d = mean log cosh z

E ||x_T||^2 = d whatever z is, and its variance is sum 2 (1 - mu^4), never more than Gaussian noise's own, so the length
of x_T needs no guard. What is paid for a mean is diversity alone, and there is one number to learn where PAHI has two.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pahi.predictors.base import Kind, NoisePredictor
from pahi.predictors.gaussian import LOG_SIGMA_RANGE, GaussianPredictor, dense_head

LIMIT = float(torch.acosh(torch.tensor(-LOG_SIGMA_RANGE[0]).exp()))  # of |z|: where sigma is the smallest allowed


class PreservingPredictor(GaussianPredictor):
    """PAHI with one angle a number of the latent."""

    KINDS: ClassVar[dict[str, Kind]] = {
        "preserving": Kind(
            "Preserving",
            "PAHI that keeps the length of Gaussian noise",
            "Mean and scale of the starting noise, predicted from the prompt, at the length of Gaussian noise.",
        )
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        NoisePredictor.__init__(self, *args, **kwargs)
        self.z = nn.Parameter(torch.zeros(self.latent_shape))
        self.head = dense_head(self.pooled_width, self.hidden, int(torch.Size(self.latent_shape).numel()))

    def distribution(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, pooled_width) -> mu and log sigma, each (batch, *latent_shape), float32."""
        z = self.z + self.head(pooled.float()).view(len(pooled), *self.latent_shape)
        z = z.clamp(-LIMIT, LIMIT)
        return z.tanh(), -z.cosh().log()
