"""Tables and pictures as tensors, and back."""

import numpy as np
import pyarrow as pa
import torch

from pahi.artifacts.schemas import read_tensor
from pahi.generators import Conditioning
from pahi.rewards import Prepared


def read_conditioning(table: pa.Table) -> Conditioning:
    """A `conditioning` table as the generator made it."""
    names = [n for n in table.column_names if n.startswith("embed_")]
    embeds = {n.removeprefix("embed_"): torch.from_numpy(read_tensor(table, n).copy()) for n in names}
    return Conditioning(
        embeds, torch.from_numpy(read_tensor(table, "pooled").copy()), table.column("truncated").to_pylist()
    )


def read_prepared(table: pa.Table, reward: str) -> Prepared:
    """One reward's columns of a `reward_text` table."""
    prefix = f"{reward}__"
    names = [f.name for f in table.schema if f.name.startswith(prefix) and not pa.types.is_boolean(f.type)]
    return {n.removeprefix(prefix): torch.from_numpy(read_tensor(table, n).copy()) for n in names}


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Pictures (batch, 3, h, w) around [0, 1] -> (batch, h, w, 3) uint8."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
