"""What every one-step generator offers, whatever its family."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class Conditioning:
    """What a generator makes of prompts: one row a prompt in every tensor."""

    embeds: dict[str, Tensor]  # what the denoiser reads, by its family's names
    pooled: Tensor  # (batch, width), what predictors read
    truncated: list[bool]  # whether the tokenizer cut the prompt

    def __len__(self) -> int:
        return len(self.pooled)

    def rows(self, index: Tensor) -> "Conditioning":
        """The rows of an integer index; a row may be taken several times."""
        return Conditioning(
            {name: tensor[index] for name, tensor in self.embeds.items()},
            self.pooled[index],
            [self.truncated[i] for i in index.tolist()],
        )

    def to(self, device: torch.device) -> "Conditioning":
        embeds = {name: tensor.to(device) for name, tensor in self.embeds.items()}
        return Conditioning(embeds, self.pooled.to(device), self.truncated)


class Generator(Protocol):
    """A frozen one-step generator. Gradients flow from pictures to noise; its own weights have none."""

    id: str
    hash: str  # over its weight files, and those of its settings that change the picture
    revision: str | None  # the Hub's commit, where it came from there
    license: str
    latent_shape: tuple[int, int, int]
    pooled_width: int
    size: tuple[int, int]  # height and width of its pictures, in pixels

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode(self, prompts: list[str]) -> Conditioning:
        """Prompts -> conditioning, without gradients, in float32."""
        ...

    def denoise(self, z: Tensor, conditioning: Conditioning) -> Tensor:
        """Unit-scale noise (batch, *latent_shape) -> clean latents of the same shape, float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents -> pictures (batch, 3, *size), float32, not clamped to [0, 1]."""
        ...
