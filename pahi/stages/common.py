"""What every stage needs: the settings, the store, the loaded models, and where its output lies.

What has to do with models is imported when it is asked for: a stage without models needs neither torch's memory nor its
seconds.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pahi.artifacts import Output, Store
from pahi.artifacts import fingerprint as make_fingerprint
from pahi.errors import UserError
from pahi.settings import Generator as GeneratorSettings
from pahi.settings import RewardModel, Settings

if TYPE_CHECKING:
    import torch

    from pahi.generators import Generator
    from pahi.rewards import Reward
    from pahi.stages.checkpoints import Checkpoints

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
        import torch

        from pahi.generation.host import keep_freed_memory
        from pahi.generators.load import pick_device

        keep_freed_memory()  # in every process that draws, by whatever command
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        return pick_device(self.settings.device)

    @cached_property
    def generator_settings(self) -> GeneratorSettings:
        """The generator's settings, with the store's copy in place of each Hub id that it has one of."""
        from pahi.generators.load import located

        return located(self.settings.generator, self.checkpoints.place)

    @cached_property
    def generator(self) -> Generator:
        from pahi.generators.load import load, replaced_parts

        _quiet()
        s = self.settings.generator
        generator = load(self.generator_settings, self.device)
        # What the artifacts call it, wherever its files came from.
        generator.id = s.id
        record = self.checkpoints.record(s.id, s.revision, (), replaced_parts(s))
        if record is not None:
            generator.revision = record["commit"]
        return generator

    @cached_property
    def checkpoints(self) -> Checkpoints:
        from pahi.stages.checkpoints import Checkpoints

        return Checkpoints(self.store)

    @cached_property
    def _rewards(self) -> dict[str, Reward]:
        return {}

    def reward(self, model: RewardModel) -> Reward:
        from pahi.rewards import load_reward

        if model.name not in self._rewards:
            _quiet()
            self._rewards[model.name] = load_reward(model, self.device, self.checkpoints.find)
        return self._rewards[model.name]

    def release(self) -> None:
        """Forgets the loaded models, so that other processes have their memory; asked for again, they are loaded."""
        import torch

        self.__dict__.pop("generator", None)
        self._rewards.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @property
    def reward_models(self) -> list[RewardModel]:
        """Every reward that scores, judges last."""
        r = self.settings.rewards
        return [*r.train, *r.held_out, *r.judges]

    @cached_property
    def model_hashes(self) -> dict[str, str]:
        """Content hashes of the generator and of every reward, by name."""
        from pahi.generators.load import generator_hash
        from pahi.rewards.load import source

        hashes = {"generator": generator_hash(self.generator_settings)}
        found = {model.name: source(model, self.checkpoints.find) for model in self.reward_models}
        trained = {found[model.name].weights: model.name for model in self.settings.rewards.train}
        for model in (*self.settings.rewards.held_out, *self.settings.rewards.judges):
            weights = found[model.name].weights
            if weights in trained:
                raise UserError(f"held-out reward {model.name!r} has the weights of {trained[weights]!r}, which trains")
        return hashes | {f"reward/{name}": reward.hash for name, reward in found.items()}

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


def missing(ctx: Context, stage: str, upstream: str) -> UserError:
    """A stage run alone, whose input is not there."""
    if made_otherwise(ctx, upstream):
        return UserError(
            f"{stage} needs the output of {upstream}, and what {ctx.settings.name!r} holds of it is of other settings "
            f"or prompts: repeat that run's --preset, --config and --set, or run `pahi {upstream}` with these"
        )
    first = f"run `pahi {upstream}` first or add --with-upstream"
    if stage in ("report", "publish", "sample"):  # which are no stages, and have no such option
        first = f"run `pahi {upstream} --with-upstream` first"
    return UserError(f"{stage} needs the output of {upstream}, which is not there; {first}")


def made_otherwise(ctx: Context, stage: str) -> bool:
    """Whether the dataset holds a finished output of this stage, under whatever settings."""
    prefix = f"{ctx.settings.name}/{stage}"
    found = (name for name in ctx.store.children(prefix) if not name.startswith("_"))
    return any(Output(ctx.store, ctx.settings.name, stage, name).manifest() is not None for name in found)


def environment(started: float, **extra: Any) -> dict[str, Any]:
    """What goes to run.json; of torch only where the stage used it."""
    torch = sys.modules.get("torch")
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        **({"torch": torch.__version__, "threads": torch.get_num_threads()} if torch else {}),
        "seconds": round(time.time() - started, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **extra,
    }
