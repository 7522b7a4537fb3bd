"""Weights that are not those of an initialisation."""

import torch


def randomise(module: torch.nn.Module, seed: int, scale: float = 0.1) -> None:
    """Moves every weight, so that none is the 0 or 1 of its initialisation and each one matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
