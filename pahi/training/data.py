"""What training reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pahi.generators import Conditioning
from pahi.rewards import Prepared


@dataclass
class PromptSet:
    """Prompts with everything the cache stage computed for them; row i of each belongs to prompt i."""

    prompt_ids: list[str]
    texts: list[str]
    conditioning: Conditioning
    prepared: dict[str, Prepared]  # by reward
    baseline: dict[str, Tensor]  # by reward: (prompts, seeds) raw scores of the standard Gaussian
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def prepared_rows(self, index: Tensor) -> dict[str, Prepared]:
        """Text sides of the rows of an integer index, by reward."""
        return {name: {n: t[index] for n, t in prepared.items()} for name, prepared in self.prepared.items()}

    def usable(self, rewards: list[str]) -> Tensor:
        """The rows whose baseline is finite by these rewards, (n,): no other one says what an uplift would be."""
        finite = torch.ones(len(self), dtype=torch.bool)
        for name in rewards:
            finite &= self.baseline[name].isfinite().all(1)
        return finite.nonzero().flatten()
