"""What is drawn: a prompt's pictures, the candidates of each, and the control group."""

import hashlib
from typing import NamedTuple

from pahi.settings import Generate

STANDARD = "standard"


class Sample(NamedTuple):
    """One drawing. The best of a group's candidates is kept; a group of one is kept as it is."""

    prompt: int  # row of the shard
    seed: int
    arm: str
    group: int


def plan(prompt_ids: list[str], settings: Generate, arm: str) -> list[Sample]:
    """Every drawing of a shard's prompts, in order, the candidates of a group side by side.

    A prompt's picture m has the seeds `seed + m K` to `seed + m K + K - 1`, K = best_of. A prompt in the control group
    has the same seeds drawn, and chosen from, with the standard Gaussian too: the arms differ in nothing else.
    """
    samples: list[Sample] = []
    group = 0
    for i, prompt_id in enumerate(prompt_ids):
        control = arm != STANDARD and in_control_group(prompt_id, settings.control_fraction)
        for m in range(settings.images_per_prompt):
            first = settings.seed + m * settings.best_of
            for name in (arm, STANDARD) if control else (arm,):
                samples += [Sample(i, first + k, name, group) for k in range(settings.best_of)]
                group += 1
    return samples


def kept_rows(prompt_ids: list[str], settings: Generate, arm: str) -> int:
    """How many rows of `images` the prompts have."""
    control = 0
    if arm != STANDARD:
        control = sum(in_control_group(prompt_id, settings.control_fraction) for prompt_id in prompt_ids)
    return (len(prompt_ids) + control) * settings.images_per_prompt


def in_control_group(prompt_id: str, fraction: float) -> bool:
    """By the prompt alone, so that growth and other seeds never move a prompt into the group or out of it."""
    digest = hashlib.sha256(f"control:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction
