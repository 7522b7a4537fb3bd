"""From settings to a reward. A kind of reward is a file beside this one that holds a `KIND`; nothing else lists it."""

import importlib
from pathlib import Path

import torch

from pahi.errors import UserError
from pahi.rewards.base import Kind, Reward, Source
from pahi.rewards.files import Find, fetch, locate
from pahi.settings import RewardModel


def kind_of(settings: RewardModel) -> Kind:
    """Raises UserError when a package that it needs is not installed."""
    try:
        return importlib.import_module(f"pahi.rewards.{settings.kind}").KIND
    except ModuleNotFoundError as error:
        raise UserError(f"reward {settings.name}: {settings.kind} needs the package {error.name}") from None


def load_reward(settings: RewardModel, device: torch.device, find: Find = fetch) -> Reward:
    """Raises UserError when it cannot be loaded."""
    kind = kind_of(settings)
    return kind.load(settings, source(settings, find), device)


def reward_hash(settings: RewardModel, find: Find = fetch) -> str:
    """What the fingerprint needs, without loading the model."""
    return source(settings, find).hash


def source(settings: RewardModel, find: Find = fetch) -> Source:
    """Where a reward's files are, and their hash; `find` brings them here."""
    kind = kind_of(settings)
    if kind.digest is not None:
        digest = kind.digest(settings)
        return Source(Path(), Path(), digest, digest)
    return locate(settings, kind, find)
