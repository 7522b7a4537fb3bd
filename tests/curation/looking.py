"""Functions that stand where a classifier or an embedder stands: `looking:reddish`, `looking:embed`."""

import numpy as np
from PIL import Image


def reddish(pictures: list[Image.Image]) -> list[float]:
    """The share of pixels whose red is well above their green."""
    pixels = [np.asarray(p.convert("RGB")).astype(int) for p in pictures]
    return [float((x[..., 0] > x[..., 1] + 60).mean()) for x in pixels]


def embed(pictures: list[Image.Image]) -> np.ndarray:
    """(n, 48): 4x4 mean colours about grey."""
    small = [np.asarray(p.convert("RGB").resize((4, 4), Image.Resampling.BOX)).reshape(-1) for p in pictures]
    return np.stack(small).astype(np.float32) / 255 - 0.5


def wrong(pictures: list[Image.Image]) -> list[float]:
    return [0.0]


def failing(pictures: list[Image.Image]) -> list[float]:
    raise ConnectionError("the service is away\nand says more")
