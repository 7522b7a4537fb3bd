"""The picture's uplift foreseen from its noise, learned beside the predictor: where scores alone are learned from.

V (`pahi.predictors.selected`) reads a noise's low frequencies and the prompt. It is learned by regression, first on
pictures of standard noise, then on those of whatever the predictor draws by now, so that it is right where the
predictor is; and it has gradients, which the generator and the rewards need not have. This is an actor and its critic
(Silver et al. 2014, "Deterministic Policy Gradient Algorithms") with episodes of one step.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pahi.predictors import SelectedPredictor
from pahi.predictors.selected import DECAY, READ
from pahi.training import objective
from pahi.training.memory import Memory
from pahi.training.parallel import Group

FIT = 400  # steps of V on standard noise, before the predictor learns from it
ALONG = 0.25  # of its rate, once it only follows the predictor
FORESEEN = 256  # noises a step whose pictures V foresees for the predictor


def regression(value: SelectedPredictor, memory: Memory, rows: Tensor, pooled: Tensor) -> Tensor:
    """V's loss over these rows of the memory, on its own device; `pooled` are all training prompts' embeddings."""
    device = next(value.parameters()).device
    index, z, uplift = memory.read(rows)
    foreseen = value.value(pooled[index].to(device), z.to(device))
    return objective.value_loss(foreseen, uplift.to(device))


class Critic:
    """V and its optimiser; every process of a group holds the same memory and takes the same steps."""

    def __init__(self, value: SelectedPredictor, memory: Memory, group: Group) -> None:
        self.value, self.memory, self.group = value, memory, group
        self.optimizer = torch.optim.AdamW(value.parameters(), betas=(0.9, 0.99), weight_decay=DECAY)

    def foresee(self, pooled: Tensor, x_T: Tensor) -> Tensor:
        """The sum of weighted uplifts foreseen of x_T (batch, *latent_shape), (batch,); it has a gradient."""
        return self.value.value(pooled, self.value.coordinates(x_T))

    def learn(self, pooled: Tensor, rate: float, draw: torch.Generator, clip: float) -> None:
        """One step of regression on READ of the pictures that were drawn so far."""
        usable = self.memory.usable()
        rows = usable[torch.randint(len(usable), (READ,), generator=draw)]
        share = self.group.share(rows)
        for entry in self.optimizer.param_groups:
            entry["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        (len(share) / len(rows) * regression(self.value, self.memory, share, pooled)).backward()
        self.group.sum(p.grad for p in self.value.parameters() if p.grad is not None)
        nn.utils.clip_grad_norm_(self.value.parameters(), clip)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """What has to be saved beside the memory."""
        return {"value": self.value.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.value.load_state_dict(state["value"])
        self.optimizer.load_state_dict(state["optimizer"])
