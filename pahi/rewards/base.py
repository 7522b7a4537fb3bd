"""What every reward offers."""

from typing import Protocol

from torch import Tensor

Prepared = dict[str, Tensor]
"""The text side of prompts, one row a prompt in every tensor: constant, so it is cached."""


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
