"""Any Python callable as a judge: `module:function`, pictures and prompts in, scores out. It has no gradient.

For a model of one's own, a VLM or a service: with a time limit a call, repeated calls and a largest batch.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pahi.errors import PahiError, UserError, first_line
from pahi.functions import find_function, function_hash
from pahi.rewards.base import Kind, Prepared, Source
from pahi.rewards.preprocess import as_rgb
from pahi.settings import RewardModel

FIRST_WAIT = 1.0  # seconds before the first repetition; each further one waits twice as long


class CallableReward:
    """function(pictures, prompts) -> (batch,), NaN where it does not apply.

    Pictures are a numpy array (batch, 3, h, w) in [0, 1], rounded to what 8 bits can hold.
    """

    differentiable = False

    def __init__(self, model: RewardModel) -> None:
        """Raises UserError when `model.id` cannot be imported."""
        name, target = model.name, model.id
        self.function = find_function(target, f"reward {name}")
        self.name, self.target = name, target
        self.timeout, self.retries, self.batch_size = model.timeout, model.retries, model.batch_size
        self.hash = function_hash(target)

    def prepare(self, prompts: list[str]) -> Prepared:
        return {}

    @torch.no_grad()
    def score(self, images: Tensor, prepared: Prepared, prompts: list[str]) -> Tensor:
        """Raises PahiError when a call fails, or takes too long, more often than `retries`."""
        pixels = ((as_rgb(images).detach().float().clamp(0, 1).cpu() * 255).round() / 255).numpy()
        size = self.batch_size or len(prompts)
        parts = [self._call(pixels[i : i + size], prompts[i : i + size]) for i in range(0, len(prompts), size)]
        return torch.cat(parts).to(images.device) if parts else torch.empty(0, device=images.device)

    def _call(self, pixels: Any, prompts: list[str]) -> Tensor:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                got = limited(lambda: self.function(pixels, prompts), self.timeout)
                break
            except UserError:
                raise
            except Exception as error:  # a service fails in as many ways as there are services
                failure = error
        else:
            times = f", {self.retries + 1} times" if self.retries else ""
            reason = f"{type(failure).__name__}: {first_line(failure)}"
            raise PahiError(f"reward {self.name}: {self.target} failed{times}: {reason}") from failure
        try:
            scores = torch.as_tensor(got, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"reward {self.name}: expected numbers, got {type(got).__name__}") from None
        if scores.shape != (len(prompts),):
            raise UserError(f"reward {self.name}: expected {len(prompts)} scores, got shape {tuple(scores.shape)}")
        return scores.cpu()


def limited(work: Callable[[], Any], seconds: float | None) -> Any:
    """`work()`, or TimeoutError after so many seconds; the call that took too long goes on, and is not waited for."""
    if seconds is None:
        return work()
    result: dict[str, Any] = {}

    def run() -> None:
        try:
            result["value"] = work()
        except BaseException as error:
            result["error"] = error

    # A daemon: a hanging call must not keep the process from ending.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in result:
        raise result["error"]
    if "value" not in result:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return result["value"]


def _load(model: RewardModel, source: Source, device: torch.device) -> CallableReward:
    return CallableReward(model)


KIND = Kind(load=_load, files=(), differentiable=False, digest=lambda model: CallableReward(model).hash)
