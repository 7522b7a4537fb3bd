"""How many pictures to draw at once, found by drawing."""

import time
from collections.abc import Sequence
from typing import Any

from pahi.generation.drawing import Drawer, Drawn
from pahi.generation.plan import Sample

GAIN = 1.05  # what a doubling must bring to be worth its memory
ROUNDS = 3  # timed draws of each size, after one that warms up; the fastest counts
MOST = {"cpu": 64}  # on a CPU nothing is gained beyond; elsewhere a shard is the bound


def find(drawer: Drawer, prompts: list[dict[str, Any]], samples: Sequence[Sample]) -> int:
    """The batch size to draw these samples with, between 1 and their number.

    Doubles the batch until memory does not suffice or two doublings in a row bring less than GAIN; of the sizes tried,
    the fastest. Leaves no trace in the drawer. Rows whose networks raise are passed by, since such a batch is drawn
    again in parts.
    """
    good = list(samples)[: MOST.get(drawer.generator.device.type)]
    best, fastest, idle, size = 1, 0.0, 0, 1
    while size <= len(good):
        drawn = _draw(drawer, prompts, good[:size])
        raised = {row for row, reason in enumerate(drawn.reasons) if reason} if drawn is not None else set()
        if raised:
            good = [sample for row, sample in enumerate(good) if row not in raised]
            continue
        seconds = [_seconds(drawer, prompts, good[:size]) for _ in range(ROUNDS if drawn is not None else 0)]
        if drawn is None or None in seconds:
            break
        speed = size / min(s for s in seconds if s is not None)
        idle = 0 if speed >= GAIN * fastest else idle + 1
        if not idle:
            best, fastest = size, speed
        if idle == 2 or size == len(good):
            break
        size = min(2 * size, len(good))
    return best


def _draw(drawer: Drawer, prompts: list[dict[str, Any]], samples: list[Sample]) -> Drawn | None:
    """The samples, drawn; None where memory did not suffice for all of them at once."""
    drawer.limit = None
    drawn = drawer.draw(prompts, samples, {})
    drawn.ready()
    halved, drawer.limit = drawer.limit is not None, None
    return None if halved else drawn


def _seconds(drawer: Drawer, prompts: list[dict[str, Any]], samples: list[Sample]) -> float | None:
    started = time.perf_counter()
    drawn = _draw(drawer, prompts, samples)
    return None if drawn is None else time.perf_counter() - started
