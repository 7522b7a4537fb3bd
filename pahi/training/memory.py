"""What a value is learned from: each picture is drawn once, and what it scored is read as often as learning wants."""

import torch
from torch import Tensor


class Memory:
    """Rows of what was read of a noise, the prompt it was drawn for, and the weighted uplift of its picture."""

    def __init__(self, capacity: int, numbers: int) -> None:
        self.seen = torch.full((capacity, numbers + 1), float("nan"))  # the uplift last
        self.prompt = torch.zeros(capacity, dtype=torch.int64)
        self.filled = 0

    def add(self, prompt: Tensor, seen: Tensor) -> None:
        """The next rows: prompts (n,), and (n, numbers + 1)."""
        start, self.filled = self.filled, self.filled + len(prompt)
        self.prompt[start : self.filled], self.seen[start : self.filled] = prompt, seen.cpu()

    def usable(self) -> Tensor:
        """The rows that hold a finite uplift, (n,)."""
        return self.seen[:, -1].isfinite().nonzero().flatten()

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts (n,), what was read of the noise (n, numbers), and uplifts (n,)."""
        return self.prompt[rows], self.seen[rows, :-1], self.seen[rows, -1]

    def state(self) -> dict[str, Tensor]:
        """What was added, to be saved."""
        return {"seen": self.seen[: self.filled].clone(), "prompt": self.prompt[: self.filled].clone()}

    def load(self, state: dict[str, Tensor]) -> None:
        self.add(state["prompt"], state["seen"])
