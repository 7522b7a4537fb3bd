"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024).

Source: kellerjordan.github.io/posts/muon.

torch.optim.Muon takes matrices alone; most of a UNet's weights are convolutions, so these are flattened here.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def orthogonal(update: Tensor, steps: int = 5) -> Tensor:
    """(rows, columns) -> nearly the nearest matrix with orthonormal rows or columns, by quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[0] > update.shape[1]
    x = (update.T if tall else update).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum made orthogonal; a weight of (out, in, height, width) counts as a matrix (out, the rest)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step down the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum", torch.zeros_like(p.grad))
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(kept, group["momentum"]).reshape(len(p), -1)
                rows, columns = update.shape
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonal(update).view(p.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
