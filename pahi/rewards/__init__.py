"""One reward model a file; all of them score pictures in [0, 1] for prepared prompts."""

from pahi.rewards.base import Prepared, Reward
from pahi.rewards.load import load_reward

__all__ = ["Prepared", "Reward", "load_reward"]
