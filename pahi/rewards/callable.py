"""Any Python callable as a judge: `module:function`, pictures and prompts in, scores out. It has no gradient."""

import importlib
import inspect

import torch
from torch import Tensor

from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError
from pahi.rewards.base import Kind, Prepared


class CallableReward:
    """function(pictures, prompts) -> (batch,), NaN where it does not apply.

    Pictures are a numpy array (batch, 3, h, w) in [0, 1], rounded to what 8 bits can hold.
    """

    differentiable = False

    def __init__(self, name: str, target: str) -> None:
        """Raises UserError when `target` cannot be imported."""
        module_name, _, function_name = target.partition(":")
        try:
            self.module = importlib.import_module(module_name)
            self.function = getattr(self.module, function_name)
        except Exception as error:  # whatever the module's own first lines raise
            raise UserError(f"reward {name}: cannot import {target!r}: {' '.join(str(error).split())}") from None
        if not callable(self.function):
            raise UserError(f"reward {name}: {target!r} is no function")
        self.name = name
        # The module's text, so that an edited judge is another judge.
        try:
            text = inspect.getsource(self.module)
        except OSError:
            text = target
        self.hash = content_hash({"target": target, "source": text})

    def prepare(self, prompts: list[str]) -> Prepared:
        return {}

    @torch.no_grad()
    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        pixels = (images.detach().float().clamp(0, 1).cpu() * 255).round() / 255
        scores = torch.as_tensor(self.function(pixels.numpy(), prompts), dtype=torch.float32)
        if scores.shape != (len(prompts),):
            raise UserError(f"reward {self.name}: expected {len(prompts)} scores, got shape {tuple(scores.shape)}")
        return scores.to(images.device)


KIND = Kind(
    load=lambda model, source, device: CallableReward(model.name, model.id),
    files=(),
    differentiable=False,
    digest=lambda model: CallableReward(model.name, model.id).hash,
)
