"""From settings to a reward. A kind of reward is a file beside this one that holds a `KIND`; nothing else lists it."""

import importlib
from pathlib import Path

import torch

from pahi.errors import UserError
from pahi.rewards.base import Kind, Reward, Source
from pahi.rewards.files import locate
from pahi.settings import RewardModel


def kind_of(settings: RewardModel) -> Kind:
    """Raises UserError when a package that it needs is not installed."""
    try:
        return importlib.import_module(f"pahi.rewards.{settings.kind}").KIND
    except ModuleNotFoundError as error:
        raise UserError(f"reward {settings.name}: {settings.kind} needs the package {error.name}") from None


def load_reward(settings: RewardModel, device: torch.device) -> Reward:
    """Raises UserError when it cannot be loaded."""
    kind = kind_of(settings)
    return kind.load(settings, source(settings), device)


def reward_hash(settings: RewardModel) -> str:
    """What the fingerprint needs, without loading the model."""
    return source(settings).hash


def source(settings: RewardModel) -> Source:
    """Where a reward's files are; fetches them where they are not here."""
    kind = kind_of(settings)
    if kind.digest is not None:
        return Source(Path(), Path(), kind.digest(settings))
    return locate(settings, kind)
