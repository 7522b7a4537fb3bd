"""The equations of training, with the names they have in the text.

    L = - E_{c, eps} [ sum_k w_k u_k ] + beta * KL( N(mu, sigma^2) || N(0, I) ) / d
    u_k = ( r_k(D(G(mu + sigma eps, c)), c) - b_k(c) ) / s_k

b_k(c) is the cached mean of reward k over standard-Gaussian pictures of prompt c (it moves no gradient and makes the
loss an uplift), s_k its pooled within-prompt standard deviation.
"""

import torch
from torch import Tensor

from pahi.rewards.ensemble import uplift

__all__ = ["kl_per_dimension", "loss", "uplift"]


def kl_per_dimension(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL( N(mu, sigma^2) || N(0, I) ) / d = mean( (mu^2 + sigma^2 - 1) / 2 - log sigma ): (batch, ...) -> (batch,)."""
    return ((mu.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma).flatten(1).mean(1)


def loss(uplifts: list[Tensor], weights: list[float], kl: Tensor, beta: float) -> Tensor:
    """The scalar to minimise."""
    reward = torch.stack([w * u for w, u in zip(weights, uplifts, strict=True)]).sum(0)
    return -reward.mean() + beta * kl.mean()
