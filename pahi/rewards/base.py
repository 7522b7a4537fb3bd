"""What every reward offers, and what its file says about it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from pahi.settings import RewardModel

Prepared = dict[str, Tensor]
"""The text side of prompts, one row a prompt in every tensor: constant, so it is cached.

`truncated` (batch,), where a reward has it, is 1 for a prompt that was longer than its tokenizer allows.
"""

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model")


class Reward(Protocol):
    """A frozen human-preference model, or any judge."""

    name: str
    hash: str
    differentiable: bool

    def prepare(self, prompts: list[str]) -> Prepared:
        """Prompts -> text features, without gradients. Empty where the reward reads the text itself."""
        ...

    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        """Pictures (batch, 3, h, w) around [0, 1] -> raw scores (batch,), float32; NaN where it does not apply.

        Gradients flow to the pictures where `differentiable`.
        """
        ...


@dataclass(frozen=True)
class Source:
    """Where a reward's files lie on this machine, and the hash of those that it reads."""

    folder: Path
    base: Path
    hash: str
    weights: str = ""  # of the weights alone: two rewards with the same are one model under two names


@dataclass(frozen=True)
class Kind:
    """A kind of reward: what `KIND` in its file says."""

    load: Callable[[RewardModel, Source, torch.device], Reward]
    """Raises UserError when it cannot be loaded."""

    checkpoint: str = ""
    """Hub id of the published checkpoint."""

    license: str = "unknown"
    """The published checkpoint's licence."""

    files: tuple[str, ...] = ("*.json", "*.txt", "*.safetensors", "*.model")
    """Patterns of the files that are read, and hashed; nothing else of a Hub repository is fetched."""

    base: str = ""
    """Hub id of what the checkpoint's folder may lack: its tokenizer, or the CLIP that its head stands on."""

    base_files: tuple[str, ...] = TOKENIZER_FILES
    """Patterns of the files that are read there."""

    differentiable: bool = True

    digest: Callable[[RewardModel], str] | None = None
    """What takes the place of the files' hash, for a reward that has no files."""
