"""One training loop for every model of the small world: seeded, averaged, and resumed where it was stopped."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pahi.tiny.train.muon import Muon


class Loop:
    """AdamW with warm-up and cosine, an exponential moving average, and a state on disk every `save_every` steps.

    Where `muon` is given, matrices and convolutions are learned by Muon at that rate.

    loop = Loop("vae", work, modules, steps=2000, lr=2e-3)
    while loop.step < loop.steps:
        loss = ...  # all randomness from loop.generator(), so that a resumed run sees what an undisturbed one sees
        loop.update(loss)
    modules = loop.averaged()
    """

    def __init__(
        self,
        name: str,
        work: Path,
        modules: nn.ModuleDict,
        steps: int,
        lr: float,
        ema: float = 0.998,
        muon: float | None = None,
    ) -> None:
        self.name, self.path, self.modules, self.steps = name, work / f"{name}.pt", modules, steps
        self.save_every, self.warmup = 100, min(200, steps // 10)
        weights = list(modules.parameters())
        matrices = [p for p in weights if muon and p.ndim > 1]
        rest = [p for p in weights if not (muon and p.ndim > 1)]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
        ]
        if muon:
            self.optimizers.append(Muon(matrices, lr=muon))
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(o, self._rate) for o in self.optimizers]
        self.average = torch.optim.swa_utils.AveragedModel(
            modules, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema)
        )
        self.step = 0
        self._losses: list[float] = []
        self._since = time.monotonic()
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            modules.load_state_dict(state["modules"])
            self.average.load_state_dict(state["average"])
            for optimizer, kept in zip(self.optimizers, state["optimizer"], strict=True):
                optimizer.load_state_dict(kept)
            for schedule, kept in zip(self.schedules, state["schedule"], strict=True):
                schedule.load_state_dict(kept)
            self.step = state["step"]

    def _rate(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup)) * (
            0.5 + 0.5 * math.cos(math.pi * min(1.0, step / self.steps)) + 0.01
        )

    def generator(self) -> torch.Generator:
        """The randomness of the present step, whatever came before it."""
        return torch.Generator().manual_seed(1_000_003 * self.step + sum(self.name.encode()))

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`."""
        self.modules.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        self.average.update_parameters(self.modules)
        self._losses.append(float(loss.detach()))
        self.step += 1
        if self.step % self.save_every == 0 or self.step == self.steps:
            self._save()
            rate = len(self._losses) / (time.monotonic() - self._since)
            print(
                f"{self.name} {self.step}/{self.steps} loss {np.mean(self._losses):.5f}, {rate:.2f} steps/s", flush=True
            )
            self._losses, self._since = [], time.monotonic()

    def _save(self) -> None:
        state = {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": [part.state_dict() for part in self.optimizers],
            "schedule": [part.state_dict() for part in self.schedules],
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def averaged(self) -> nn.ModuleDict:
        """The moving average of the modules, frozen."""
        return self.average.module.eval().requires_grad_(False)  # type: ignore[return-value]
