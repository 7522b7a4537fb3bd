"""Which scene a noise leads to: of the scenes that a prompt allows, the one that lies nearest.

Flow matching with independent noise learns some map from noise to pictures over very many steps, and its paths are
curved. Optimal transport between a batch of noise and a batch of data makes them almost straight from the start
(Pooladian et al. 2023, "Multisample Flow Matching"; Tong et al. 2023, "Minibatch Optimal Transport"). Here a batch
belongs to one prompt, so both sides keep their distributions given the prompt: standard normal, and every scene as
often as `scenes.compose` draws it. Where two scenes are almost equally near, a single step cannot decide and shows
both at once: that is what makes some noise bad, as with the published models.
"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def nearest(noise: Tensor, latents: Tensor) -> Tensor:
    """(n, ...) and (n, ...) -> (n,): which of the latents each noise is paired with, at the least total distance."""
    likeness = noise.flatten(1) @ latents.flatten(1).T
    _, paired = linear_sum_assignment(likeness.numpy(), maximize=True)
    return torch.as_tensor(paired)


def noise_of(count: int, seed: int) -> Tensor:
    """(count, 4, 16, 16), standard normal."""
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
