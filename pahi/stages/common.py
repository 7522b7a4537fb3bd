"""What every stage needs: the settings, the store, the loaded models, and where its output lies."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pahi.artifacts import Output, Store
from pahi.artifacts import fingerprint as make_fingerprint
from pahi.artifacts.schemas import read_tensor
from pahi.errors import UserError
from pahi.generators import Conditioning, Generator
from pahi.generators.load import generator_hash, load, pick_device
from pahi.rewards import Prepared, Reward, load_reward
from pahi.rewards.load import reward_hash
from pahi.settings import RewardModel, Settings

Progress = Callable[[str, int, int, str], None]


def silent(stage: str, done: int, total: int, note: str) -> None:
    """The progress of a run that nobody watches."""


def _quiet() -> None:
    """The stages report progress themselves; the libraries' bars would tear theirs apart."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


@dataclass
class Context:
    """One run's settings and store; models are loaded when first asked for, once."""

    settings: Settings
    progress: Progress = silent

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.root)

    @cached_property
    def device(self) -> torch.device:
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        return pick_device(self.settings.device)

    @cached_property
    def generator(self) -> Generator:
        _quiet()
        return load(self.settings.generator, self.device)

    @cached_property
    def _rewards(self) -> dict[str, Reward]:
        return {}

    def reward(self, model: RewardModel) -> Reward:
        if model.name not in self._rewards:
            _quiet()
            self._rewards[model.name] = load_reward(model, self.device)
        return self._rewards[model.name]

    @property
    def reward_models(self) -> list[RewardModel]:
        """Every reward that scores, judges last."""
        r = self.settings.rewards
        return [*r.train, *r.held_out, *r.judges]

    @cached_property
    def model_hashes(self) -> dict[str, str]:
        """Content hashes of the generator and of every reward, by name."""
        hashes = {"generator": generator_hash(self.settings.generator)}
        rewards = {model.name: reward_hash(model) for model in self.reward_models}
        trained = {rewards[model.name]: model.name for model in self.settings.rewards.train}
        for model in (*self.settings.rewards.held_out, *self.settings.rewards.judges):
            if rewards[model.name] in trained:
                raise UserError(
                    f"held-out reward {model.name!r} has the weights of {trained[rewards[model.name]]!r}, which trains"
                )
        return hashes | {f"reward/{name}": digest for name, digest in rewards.items()}

    def output(self, stage: str, version: int, settings: Any, inputs: dict[str, str]) -> Output:
        """The place of a stage's output, from what determines it."""
        return Output(self.store, self.settings.name, stage, make_fingerprint(stage, version, settings, inputs))

    def reward_settings(self) -> list[dict[str, Any]]:
        """The rewards as a fingerprint sees them: their content hashes are inputs, so ids and revisions are not."""
        r = self.settings.rewards
        return [
            {"role": role, "name": m.name, "kind": m.kind, "dtype": m.dtype, "weight": m.weight}
            for role, models in (("train", r.train), ("held_out", r.held_out), ("judge", r.judges))
            for m in models
        ]


def missing(stage: str, upstream: str) -> UserError:
    """A stage run alone, whose input is not there."""
    return UserError(
        f"{stage} needs the output of {upstream}, which is not there; "
        f"run `pahi {upstream}` first or add --with-upstream"
    )


def environment(started: float, **extra: Any) -> dict[str, Any]:
    """What goes to run.json."""
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": round(time.time() - started, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
    }


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
    names = [n for n in table.column_names if n.startswith(prefix)]
    return {n.removeprefix(prefix): torch.from_numpy(read_tensor(table, n).copy()) for n in names}


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Pictures (batch, 3, h, w) around [0, 1] -> (batch, h, w, 3) uint8."""
    return (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
