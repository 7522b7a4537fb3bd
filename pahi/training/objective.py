"""The equations of training, with the names they have in the text.

    L = - E_{c, eps} [ sum_k w_k u_k ] + beta * divergence / d
    u_k = ( r_k(D(G(x_T, c)), c) - b_k(c) ) / s_k
    Gaussian predictors: x_T = mu + sigma eps,    divergence = KL( N(mu, sigma^2) || N(0, I) )
    residual ones:       x_T = eps + f(eps, c),   divergence = ||f||^2 / 2

Where a reward or a generator has no gradient, that of E[u] comes from the score function, with q = N(mu, sigma^2):

    grad E[u] = E[ u grad log q(x_T) ]

or V(x_T; c) stands in the place of sum_k w_k u_k, what a small network foresees of it, learned by regression on scores:

    L = E ( V(x_T; c) - sum_k w_k u_k )^2

over standard noise and the predictor's own. A predictor that chooses among standard noises chooses by V, and learns
nothing else.

b_k(c) is the cached mean of reward k over standard-Gaussian pictures of prompt c (it moves no gradient and makes the
loss an uplift), s_k its pooled within-prompt standard deviation.
"""

import torch
from torch import Tensor

from pahi.predictors.gaussian import kl_per_dimension
from pahi.rewards.ensemble import uplift

__all__ = ["kl_per_dimension", "loss", "score_function", "uplift", "value_loss", "weighted"]


def score_function(uplifts: list[Tensor], weights: list[float], x_T: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """A scalar whose gradient with respect to mu and log sigma estimates that of E[ sum_k w_k u_k ].

    x_T, mu, log_sigma: (batch, ...); uplifts (batch,) each. The cached b_k(c) is the control variate.
    """
    log_q = (-((x_T.detach() - mu) / log_sigma.exp()).square() / 2 - log_sigma).flatten(1).sum(1)
    return (weighted(uplifts, weights).detach() * log_q).mean()


def loss(uplifts: list[Tensor], weights: list[float], divergence: Tensor, beta: float) -> Tensor:
    """The scalar to minimise."""
    return -weighted(uplifts, weights).mean() + beta * divergence.mean()


def value_loss(value: Tensor, uplift: Tensor) -> Tensor:
    """The scalar to minimise where V is learned, from what was foreseen and what was seen, (batch,) each."""
    return (value - uplift).square().mean()


def weighted(uplifts: list[Tensor], weights: list[float]) -> Tensor:
    """sum_k w_k u_k, (batch,)."""
    return torch.stack([w * u for w, u in zip(weights, uplifts, strict=True)]).sum(0)
