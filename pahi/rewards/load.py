"""From settings to a reward: the next kind is one more line here and one more file beside it."""

import torch

from pahi import models
from pahi.rewards.base import Reward
from pahi.rewards.callable import CallableReward
from pahi.rewards.pickscore import PickScore
from pahi.settings import RewardModel


def load_reward(settings: RewardModel, device: torch.device) -> Reward:
    """Raises UserError when it cannot be loaded."""
    if settings.kind == "callable":
        return CallableReward(settings.name, settings.id)
    return PickScore(settings.name, models.resolve(settings.id, settings.revision), device)


def reward_hash(settings: RewardModel) -> str:
    """What the fingerprint needs, without loading the model."""
    if settings.kind == "callable":
        return CallableReward(settings.name, settings.id).hash
    return models.model_hash(models.resolve(settings.id, settings.revision))
