"""pahi/generate-shards: draws one group of shards; a flow run of pahi/generate starts many of these."""

import time

from prefect import flow, get_run_logger, task

from flows.common import DEFAULT, FLOW, RETRIED, Result, end_if_lost_too_often
from pahi.pace import Pace, line
from pahi.settings import Settings

SECONDS_BETWEEN_LINES = 30.0  # a thousand of these run at once


@flow(flow_run_name="generate-shards-{settings.name}", **FLOW)
def generate_shards(shards: list[tuple[int, int]] | None = None, settings: Settings = DEFAULT) -> Result:
    """Draws a group of shards; those that are there already are found, not drawn again.

    Args:
        shards: Partition and number of each shard.
        settings: The settings of the run that this is a part of.
    """
    end_if_lost_too_often()
    return draw_task(settings, shards or [])


@task(name="shards", task_run_name="shards", **RETRIED)
def draw_task(settings: Settings, shards: list[tuple[int, int]]) -> Result:
    """Draws the shards in this process."""
    from pahi.stages.generate import draw_group

    logger, last = get_run_logger(), time.monotonic()
    pace: Pace | None = None

    def progress(stage: str, done: int, total: int, note: str) -> None:
        nonlocal last, pace
        now = time.monotonic()
        if pace is None:
            pace = Pace(total, done, now)
        pace.update(done, total, now)
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            logger.info("%s", line(stage, pace, note))

    return draw_group(settings, shards, progress)
