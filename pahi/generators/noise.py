"""Noise that depends on (prompt_id, seed) alone: never on batch, shard, worker or device."""

import hashlib

import torch
from torch import Tensor


def standard_noise(prompt_ids: list[str], seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """eps ~ N(0, I), (rows, *shape), float32 on the CPU: one generator a row, seeded by a hash of both."""
    rows = []
    for prompt_id, seed in zip(prompt_ids, seeds, strict=True):
        digest = hashlib.sha256(f"{prompt_id}:{seed}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        rows.append(torch.randn(shape, generator=generator))
    return torch.stack(rows)
