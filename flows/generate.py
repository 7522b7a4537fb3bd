"""pahi/generate: draws pictures in bulk, in its own process or by flow runs of pahi/generate-shards."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from prefect import flow, get_run_logger
from prefect.deployments import run_deployment

from flows.artifacts import Progress
from flows.common import DEFAULT, FLOW, Result, end_if_lost_too_often, run_one, stage_task
from pahi.errors import StageFailed
from pahi.settings import Settings

ROUNDS = 3  # of flow runs for shards that are still missing
LARGEST = 1000  # groups: each has a thread here that waits for it


@flow(flow_run_name="generate-{settings.name}", **FLOW)
def generate(with_upstream: bool = False, fan_out: int = 0, settings: Settings = DEFAULT) -> Result:
    """Draws pictures in bulk.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        fan_out: Groups of shards to run as flow runs of pahi/generate-shards, several times more than workers; 0 draws
            them here.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    if fan_out:
        end_if_lost_too_often()
        if with_upstream:
            for stage in ("ingest", "cache", "train"):
                stage_task.with_options(name=stage)(stage, settings, pipeline=True)
        spread(settings, fan_out)
    return run_one("generate", settings, with_upstream)


def spread(settings: Settings, fan_out: int) -> None:
    """Has every missing shard drawn elsewhere; believes manifests alone, whatever the flow runs say of themselves."""
    from pahi.stages.generate import groups

    logger = get_run_logger()
    parameters = settings.model_dump(mode="json")
    for attempt in range(ROUNDS):
        missing = groups(settings, min(fan_out, LARGEST))
        if not missing:
            return
        count = sum(len(group) for group in missing)
        logger.info("%d shards in %d flow runs, round %d of %d", count, len(missing), attempt + 1, ROUNDS)

        # All together ask the server some fifty times a second at most.
        seconds = max(2.0, len(missing) / 50)

        def one(group: list[tuple[int, int]], seconds: float = seconds) -> str:
            run: Any = run_deployment(
                "pahi/generate-shards",
                parameters={"settings": parameters, "shards": group},
                as_subflow=False,
                poll_interval=seconds,
            )
            return str(run.state_name)

        # Waiting takes a thread each; a run that cannot even be started is a round's failure, not the parent's.
        with ThreadPoolExecutor(len(missing)) as threads:
            progress = Progress(settings.name)
            futures = [threads.submit(one, group) for group in missing]
            for done, future in enumerate(as_completed(futures), 1):
                progress("generate", done, len(missing), "flow runs ended")
                try:
                    logger.info("a group's flow run ended: %s", future.result())
                except Exception as error:
                    logger.warning("a group's flow run failed: %s", error)
    left = sum(len(group) for group in groups(settings, fan_out))
    if left:
        raise StageFailed(f"{left} shards are still missing after {ROUNDS} rounds of flow runs; run again to draw them")
