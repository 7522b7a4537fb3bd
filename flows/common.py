"""What every deployment shares: the task that runs a stage, when it is retried, and what Prefect's UI shows of it.

`pahi.stages` is imported when a task runs: `prefect deploy` reads these files on machines that have no torch.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from pahi.errors import UserError
from pahi.pace import Pace
from pahi.settings import Settings, load_settings
from pahi.tables import arm_rows, count_rows, markdown

Listener = Callable[[str, int, int, str], None]
Result = dict[str, Any]

DEFAULT = load_settings()
SECONDS_BETWEEN_UPDATES = 2.0

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells `listener` too how far the stages are: the command line's bars."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


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
    # A finished stage is known by its manifest in the store, never by a record here.
    "persist_result": False,
}


@task(name="stage", task_run_name="{stage}", **RETRIED)
def stage_task(stage: str, settings: Settings, with_upstream: bool = False, pipeline: bool = False) -> Result:
    """Runs one stage, and shows its counts or arms as a table. In a pipeline, a grown dataset keeps its predictor."""
    from pahi.stages.run import run_next, run_stage

    logger = get_run_logger()
    progress = _Progress(settings.name)
    if pipeline:
        result = run_next(stage, settings, progress=progress)
    else:
        result = run_stage(stage, settings, with_upstream=with_upstream, progress=progress)
    progress.close()
    how = "found finished" if result["skipped"] else f"finished in {result['seconds']:.1f} s"
    logger.info("%s %s: %s", stage, how, result["url"])
    with _unimportant("table"):
        create_table_artifact(
            table=arm_rows(result) if "arms" in result["summary"] else count_rows(result),
            key=artifact_key(settings.name, stage),
            description=f"{stage} of {settings.name}, {how}: {result['url']}",
        )
    return result


@task(name="report", task_run_name="report", **RETRIED)
def report_task(settings: Settings, results: list[Result]) -> Result:
    """Writes the page, and a short account of it with its address."""
    from pahi.stages import write_report

    url = write_report(settings)
    get_run_logger().info("report: %s", url)
    link = url if "://" in url else f"file://{url}"
    arms = next((arm_rows(result) for result in results if "arms" in result.get("summary", {})), [])
    with _unimportant("report"):
        create_markdown_artifact(
            markdown=f"# {settings.name}\n\n[report.html]({link})\n\n`{url}`\n\n{markdown(arms)}",
            key=artifact_key(settings.name, "report"),
            description=f"Report of {settings.name}",
        )
    return {"stage": "report", "url": url}


def run_one(stage: str, settings: Settings, with_upstream: bool) -> Result:
    """The body of each stage's flow."""
    return stage_task(stage, settings, with_upstream)


def artifact_key(*parts: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


@contextlib.contextmanager
def _unimportant(what: str) -> Iterator[None]:
    """A stage that is finished stays finished when the server could not take its artifact."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("no %s artifact: %s", what, error)


class _Progress:
    """One progress artifact a stage, made at its first step and not updated more often than anyone looks."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.listener = _listener.get()
        self.artifacts: dict[str, UUID] = {}
        self.last = 0.0
        self.paces: dict[str, Pace] = {}

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        if self.listener is not None:
            self.listener(stage, done, total, note)
        now = time.monotonic()
        pace = self.paces.setdefault(stage, Pace(total, done, now))
        pace.update(done, total, now)
        if stage in self.artifacts and now - self.last < SECONDS_BETWEEN_UPDATES and done < total:
            return
        self.last = now
        percent = 100.0 * min(done, total) / total if total else 0.0
        description = f"{stage} of {self.dataset}: {', '.join(p for p in (f'{done} of {total}', pace.left, note) if p)}"
        with _unimportant("progress"):
            if stage in self.artifacts:
                update_progress_artifact(self.artifacts[stage], progress=percent, description=description)
            else:
                key = artifact_key(self.dataset, stage, "progress")
                self.artifacts[stage] = cast(UUID, create_progress_artifact(percent, key=key, description=description))

    def close(self) -> None:
        """A stage that is finished shows as finished."""
        for stage, artifact in self.artifacts.items():
            with _unimportant("progress"):
                update_progress_artifact(artifact, progress=100.0, description=f"{stage} of {self.dataset}: finished")
