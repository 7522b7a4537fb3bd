"""The best that gradients find for one noise: ReNO (Eyring et al. 2024), tens of calls for a picture.

SGD on the noise itself, with Nesterov's momentum, clipped gradients and a prior on the noise's length; its published
rate, 5 x 0.1 for latents of length 128, is taken as a share of the length. The best point on the way counts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CLIP = 0.1  # largest norm of a row's gradient
RATE = 5.0 / 128  # times the square root of a latent's numbers
MOMENTUM = 0.9
PRIOR = 0.01  # weight of ||x||^2 / 2 - (d - 1) log ||x||, which is least where Gaussian noise lies


def optimise(eps: Tensor, value: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Noise (batch, ...) from which `value` (batch, ...) -> (batch,) is highest among `steps` points, eps the first.

    `value` must be differentiable; it is called `steps` times. Rows are independent of each other.
    """
    numbers = eps[0].numel()
    rate = RATE * numbers**0.5
    x, velocity, best = eps, torch.zeros_like(eps), eps
    highest = torch.full((len(eps),), float("-inf"), device=eps.device)

    def rows(v: Tensor) -> Tensor:
        return v.view(-1, *[1] * (eps.ndim - 1))

    with torch.enable_grad():
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            values = value(x)
            length = x.flatten(1).norm(dim=1)
            prior = length.square() / 2 - (numbers - 1) * length.log()
            (gradient,) = torch.autograd.grad((PRIOR * prior - values).sum(), x)
            better = values.detach() > highest
            highest, best = torch.where(better, values.detach(), highest), torch.where(rows(better), x.detach(), best)
            gradient = torch.nan_to_num(gradient, posinf=0.0, neginf=0.0)
            gradient = gradient * rows((CLIP / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1.0))
            velocity = MOMENTUM * velocity + gradient
            x = x.detach() - rate * (gradient + MOMENTUM * velocity)
    return best
