"""The lowest frequencies of the noise, where one-step generators decide layout and colour."""

import math

import torch
from torch import Tensor

FREQUENCIES = 4  # along each side, of every channel


def cosines(length: int) -> Tensor:
    """(frequencies, length): the lowest ones of the orthonormal cosine basis (DCT-II)."""
    f, place = torch.arange(min(FREQUENCIES, length))[:, None], torch.arange(length) + 0.5
    waves = torch.cos(math.pi * f * place / length) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


def lowest(eps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Noise (batch, channels, h, w) -> (batch, channels, frequencies, frequencies), standard normal where the noise is.

    `rows` and `columns` are `cosines` of h and w.
    """
    return torch.einsum("bchw,fh,gw->bcfg", eps, rows, columns)
