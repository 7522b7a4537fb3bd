"""What every deployment shares: the task that runs a stage, when it is retried, and when it ends.

`pahi.stages` is imported when a task runs: `prefect deploy` reads these files on machines that have no torch.
"""

import os
from typing import Any

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from flows.artifacts import Progress, Result, listening, show_report, show_stage
from flows.hooks import tell
from flows.lost import end_if_lost_too_often
from pahi.errors import UserError
from pahi.settings import Settings, load_settings

__all__ = [
    "DEFAULT",
    "FLOW",
    "Result",
    "end_if_lost_too_often",
    "listening",
    "report_task",
    "run_one",
    "stage_task",
]

DEFAULT = load_settings()


def timeout_seconds() -> float | None:
    """PAHI_TIMEOUT_HOURS of the environment, which prefect.yaml sets; no limit where there is none."""
    hours = os.environ.get("PAHI_TIMEOUT_HOURS", "").strip()
    try:
        seconds = float(hours) * 3600 if hours else None
    except ValueError:
        seconds = -1
    if seconds is not None and not seconds > 0:
        raise UserError(f"PAHI_TIMEOUT_HOURS={hours}: expected a number of hours above 0")
    return seconds


# What every flow says of itself. Its own few parameters come before the settings, whose form is long. A flow is not
# retried: its stages are, and after a crash a run is started again.
FLOW: dict[str, Any] = {
    "name": "pahi",
    "timeout_seconds": timeout_seconds(),
    "on_failure": [tell],
    "on_crashed": [tell],
    "on_cancellation": [tell],
    # A finished stage is known by its manifest in the store, never by a record here.
    "persist_result": False,
}


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake is the same mistake the next time; anything else may have been the store or the network."""
    try:
        state.result()
    except UserError:
        return False
    except Exception:
        return True
    return False


RETRIED: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_retrying,
    "persist_result": False,
}


@task(name="stage", task_run_name="{stage}", **RETRIED)
def stage_task(stage: str, settings: Settings, with_upstream: bool = False, pipeline: bool = False) -> Result:
    """Runs one stage, and shows its counts or arms as a table. In a pipeline, a grown dataset keeps its predictor."""
    from pahi.stages.run import run_next, run_stage

    progress = Progress(settings.name)
    if pipeline:
        result = run_next(stage, settings, progress=progress)
    else:
        result = run_stage(stage, settings, with_upstream=with_upstream, progress=progress)
    progress.close()
    how = "found finished" if result["skipped"] else f"finished in {result['seconds']:.1f} s"
    get_run_logger().info("%s %s: %s", stage, how, result["url"])
    show_stage(settings.name, result, how)
    return result


@task(name="report", task_run_name="report", **RETRIED)
def report_task(settings: Settings, results: list[Result]) -> Result:
    """Writes the page, and a short account of it with its address."""
    from pahi.stages import sample_grid, write_report

    url = write_report(settings)
    get_run_logger().info("report: %s", url)
    show_report(settings.name, url, results, sample_grid(settings))
    return {"stage": "report", "url": url}


def run_one(stage: str, settings: Settings, with_upstream: bool) -> Result:
    """The body of each stage's flow."""
    end_if_lost_too_often()
    return stage_task(stage, settings, with_upstream)
