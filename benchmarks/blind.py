"""A reward with a blind spot, for the demonstration of reward hacking by `frontier.py --hacking`."""

from collections.abc import Sequence

import numpy as np


def saturation(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """How colourful pictures are, 0 to 100, whatever they show: (batch, 3, h, w) in [0, 1] -> (batch,)."""
    return 100 * (pictures.max(1) - pictures.min(1)).mean((1, 2))
