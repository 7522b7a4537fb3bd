"""Which scene a noise stands for: a fixed reading of its low frequencies.

Flow matching with independent noise learns, over many steps, some map from noise to scenes; rectified flow then trains
again on that map's own pairs, whose paths are straight. Two CPU cores have no time for the first half, so the pairs
are given: what a prompt leaves free (where, how large, which colour) is read from means of blocks of the noise. Each
mean is standard normal under N(0, I) and independent of the others, so scenes come out as often as `scenes.compose`
draws them. Where a reading lies near a border (two quarters almost equal, two colours), a step that cannot be sharp
shows both at once: that is what makes some noise bad, as with the published models.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pahi.tiny import scenes
from pahi.tiny.scenes import Scene, Spec, Thing

QUARTERS = [(0, 0), (1, 0), (0, 1), (1, 1)]  # (column, row)


def _uniform(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def _choose(value: float, options: list[str]) -> str:
    return options[min(len(options) - 1, int(_uniform(value) * len(options)))]


class Reading:
    """Means over noise z (4, 16, 16), each of unit deviation."""

    def __init__(self, z: np.ndarray) -> None:
        blocks = z.reshape(4, 2, 8, 2, 8).mean((2, 4)) * 8  # (channel, row, column)
        halves = z.reshape(4, 2, 2, 4, 2, 2, 4).mean((3, 6))  # (channel, row, half, column, half)
        self.whole = blocks.sum((1, 2)) / 2
        self.rightward = (blocks[:, :, 1] - blocks[:, :, 0]).sum(1) / 2
        self.downward = (blocks[:, 1] - blocks[:, 0]).sum(1) / 2
        self.block = {(c, r): blocks[:, r, c] for c, r in QUARTERS}
        # Within a quarter: right minus left half, lower minus upper half.
        self.right = {(c, r): (halves[:, r, :, c, 1] - halves[:, r, :, c, 0]).mean(1) * 4 for c, r in QUARTERS}
        self.down = {(c, r): (halves[:, r, 1, c] - halves[:, r, 0, c]).mean(1) * 4 for c, r in QUARTERS}
        self.stripes = sum(self.right[q][3] for q in QUARTERS) / 2


def scene_of(spec: Spec, z: np.ndarray) -> Scene:
    """The scene of `spec` that noise z (4, 16, 16) stands for."""
    read = Reading(z)
    background = spec.background or _choose(read.stripes, list(scenes.BACKGROUNDS))
    palette = list(scenes.COLORS)
    if len(spec.items) == 1 and spec.kind != "counting":
        item = spec.items[0]
        size, value = spec.size, _uniform(read.whole[2])
        if size is None:
            size, value = ("small", 2 * value) if value < 0.5 else ("large", 2 * value - 1)
        low, high = scenes.SIZES[size]
        r = low + value * (high - low)
        low, high = r + scenes.MARGIN, scenes.SIZE - r - scenes.MARGIN
        cx = low + (high - low) * _uniform(read.rightward[0])
        cy = low + (high - low) * _uniform(read.downward[0])
        return Scene((Thing(item.shape, item.color or _choose(read.whole[3], palette), cx, cy, r),), background)

    def loudest(among: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
        return sorted(sorted(among, key=lambda q: -read.block[q][0])[:count], key=QUARTERS.index)

    if len(spec.items) == 1:
        item = spec.items[0]
        color = item.color or _choose(read.whole[3], palette)
        return Scene(tuple(_thing(item.shape, color, q, read) for q in loudest(QUARTERS, item.count)), background)
    if spec.relation == "left":
        places = [loudest([(c, 0), (c, 1)], 1)[0] for c in (0, 1)]
    elif spec.relation == "above":
        places = [loudest([(0, r), (1, r)], 1)[0] for r in (0, 1)]
    else:
        places = loudest(QUARTERS, 2)
        if read.whole[1] > 0:
            places.reverse()
    colors = [item.color for item in spec.items]
    for i, (named, place) in enumerate(zip(list(colors), places, strict=True)):
        colors[i] = named or _choose(read.block[place][3], [c for c in palette if c not in colors])
    things = [_thing(i.shape, str(c), q, read) for i, c, q in zip(spec.items, colors, places, strict=True)]
    return Scene(tuple(things), background)


def _thing(shape: str, color: str, quarter: tuple[int, int], read: Reading) -> Thing:
    low, high = scenes.SLOT_SIZE
    r = low + (high - low) * _uniform(read.block[quarter][2])
    play = scenes.SIZE / 4 - r - scenes.MARGIN
    cx, cy = (
        scenes.SIZE / 4 + at * scenes.SIZE / 2 + play * (2 * _uniform(value) - 1)
        for at, value in zip(quarter, (read.right[quarter][1], read.down[quarter][1]), strict=True)
    )
    return Thing(shape, color, cx, cy, r)


def noise_of(count: int, seed: int) -> Tensor:
    """(count, 4, 16, 16), standard normal."""
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
