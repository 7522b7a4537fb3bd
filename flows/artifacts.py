"""What Prefect's UI shows of a run: tables, links, and how far it is. None of it can fail a stage."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from pahi.pace import Pace
from pahi.tables import arm_rows, count_rows, markdown

Listener = Callable[[str, int, int, str], None]
Result = dict[str, Any]

SECONDS_BETWEEN_UPDATES = 2.0
# What a person opens of a stage's output.
LINKS = {"train": "predictor", "curate": ""}

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells `listener` too how far the stages are: the command line's bars."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def artifact_key(*parts: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def link(url: str) -> str:
    """A place in the store as an address; a folder of this machine becomes a file address."""
    return url if "://" in url else f"file://{url}"


def show_stage(dataset: str, result: Result, how: str) -> None:
    """A stage's counts or arms as a table, and a link to what it is for."""
    stage = result["stage"]
    with _unimportant("table"):
        create_table_artifact(
            table=arm_rows(result) if "arms" in result["summary"] else count_rows(result),
            key=artifact_key(dataset, stage),
            description=f"{stage} of {dataset}, {how}: {result['url']}",
        )
    if stage in LINKS:
        with _unimportant("link"):
            create_link_artifact(
                link=link("/".join(filter(None, (result["url"], LINKS[stage])))),
                key=artifact_key(dataset, stage, "link"),
                description=f"{stage} of {dataset}",
            )


def show_report(dataset: str, url: str, results: list[Result], picture: str = "") -> None:
    """The page's address, the funnel, the arms and some samples (an address, or the picture itself) in one place."""
    arms = next((arm_rows(result) for result in results if "arms" in result.get("summary", {})), [])
    funnel = funnel_rows(results)
    with _unimportant("funnel"):
        create_table_artifact(
            table=funnel, key=artifact_key(dataset, "funnel"), description=f"Prompts to pictures of {dataset}"
        )
    parts = [f"# {dataset}", f"[report.html]({link(url)})", f"`{url}`", markdown(funnel), markdown(arms)]
    if picture:
        parts += ["Above the standard Gaussian, below the predictor, from the same noise:", f"![samples]({picture})"]
    with _unimportant("report"):
        create_markdown_artifact(
            markdown="\n\n".join(parts),
            key=artifact_key(dataset, "report"),
            description=f"Report of {dataset}",
        )


def funnel_rows(results: list[Result]) -> list[dict[str, Any]]:
    """From rows read to pictures published: one row a step, with its share of the step before.

    A step that adds (several pictures a prompt) shows a share above 100%.
    """
    found = {result["stage"]: result["summary"] for result in results if "summary" in result}
    steps = [
        ("rows read", "ingest", "rows_in"),
        ("prompts kept", "ingest", "prompts"),
        ("pictures drawn", "generate", "images"),
        ("pictures published", "curate", "kept"),
    ]
    rows: list[dict[str, Any]] = []
    for step, stage, key in steps:
        count = found.get(stage, {}).get(key)
        if count is None:
            continue
        before = rows[-1]["count"] if rows else 0
        rows.append({"step": step, "count": count, "of the step before": f"{count / before:.1%}" if before else "-"})
    return rows


class Progress:
    """One progress artifact a stage, made at its first step and not updated more often than anyone looks."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        self.listener = _listener.get()
        self.artifacts: dict[str, UUID] = {}
        self.paces: dict[str, Pace] = {}
        self.last = 0.0

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
        parts = [f"{stage} of {self.dataset}: {done} of {total or '?'}", note, pace.going]
        description = ", ".join(part for part in parts if part)
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


@contextlib.contextmanager
def _unimportant(what: str) -> Iterator[None]:
    """A stage that is finished stays finished when the server could not take its artifact."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("no %s artifact: %s", what, error)
