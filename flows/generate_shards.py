"""pahi/generate-shards: draws one group of shards; a flow run of pahi/generate starts many of these."""

from prefect import flow, task

from flows.common import DEFAULT, RETRIED, Result, _Progress
from pahi.settings import Settings


@flow(name="pahi", flow_run_name="generate-shards-{settings.name}", persist_result=False)
def generate_shards(settings: Settings = DEFAULT, shards: list[tuple[int, int]] | None = None) -> Result:
    """Draws a group of shards; those that are there already are found, not drawn again.

    Args:
        settings: The settings of the run that this is a part of.
        shards: Partition and number of each shard.
    """
    return draw_task(settings, shards or [])


@task(name="shards", task_run_name="shards", **RETRIED)
def draw_task(settings: Settings, shards: list[tuple[int, int]]) -> Result:
    """Draws the shards in this process."""
    from pahi.stages.generate import draw_group

    progress = _Progress(settings.name)
    result = draw_group(settings, shards, progress)
    progress.close()
    return result
