"""The stages by name, alone or in their order.

A stage is imported when it runs: all but ingest bring torch with them.
"""

import time
from typing import Any

from pahi.artifacts import Output
from pahi.errors import UserError
from pahi.settings import Settings
from pahi.stages import ingest
from pahi.stages.common import Context, Progress, missing, silent

STAGES = ("ingest", "cache", "train", "evaluate", "generate", "curate")


def run_stage(
    name: str, settings: Settings, *, with_upstream: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Runs one stage, or finds it finished.

    Raises UserError when what it reads is missing and `with_upstream` is off.
    """
    ctx = Context(settings, progress or silent)
    if with_upstream:
        for upstream in STAGES[: STAGES.index(name)]:
            # Evaluation is nobody's input.
            if upstream != "evaluate":
                # Asked for by name, training is on everything that was ingested, and so is its cache.
                _one(upstream, ctx, by_name=name == "train")
    return _one(name, ctx, by_name=True)


def fetch_models(settings: Settings, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Brings every checkpoint into the store, so that workers start without the Hub: one row a model."""
    from pahi.stages import cache

    return cache.fetch(Context(settings, progress or silent))


def run_all(settings: Settings, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Every stage in its order, then the report. A dataset that grew keeps its predictor."""
    from pahi.stages.report import write

    ctx = Context(settings, progress or silent)
    results = [_one(name, ctx, by_name=False) for name in STAGES]
    return [*results, {"stage": "report", "dataset": settings.name, "url": write(ctx)}]


def run_next(name: str, settings: Settings, *, progress: Progress | None = None) -> dict[str, Any]:
    """One stage as `run_all` runs it: a dataset that grew is not trained again."""
    return _one(name, Context(settings, progress or silent), by_name=False)


def write_report(settings: Settings) -> str:
    """Writes report.html of what is finished; returns its place."""
    from pahi.stages.report import write

    return write(Context(settings))


def sample_grid(settings: Settings) -> str:
    """The report's picture of before and after as a data URI; empty where nothing was drawn for it."""
    from pahi.reports.sheet import data_uri

    picture = Context(settings).store.read_or_none(f"{settings.name}/before-after.png")
    return data_uri(picture) if picture else ""


def plan_curation(settings: Settings, *, progress: Progress | None = None) -> dict[str, Any]:
    """What curation would keep and drop, and why; nothing is written. Raises UserError where nothing was drawn yet."""
    from pahi.stages import curate

    ctx = Context(settings, progress or silent)
    return curate.plan(ctx, ingest.chain(ctx))


def publish(
    settings: Settings,
    target: str,
    *,
    preferences: bool = False,
    private: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Copies the curated dataset, or its preference set alone, to the Hub, a folder or another store."""
    from pahi.curation.publish import publish as send
    from pahi.stages import curate

    ctx = Context(settings, progress or silent)
    output = curate.locate(ctx, ingest.chain(ctx))
    if output is None:
        raise missing(ctx, "publish", "curate")
    return send(
        output,
        target,
        preferences=preferences,
        private=private,
        progress=lambda done, total: ctx.progress("publish", done, total, "files"),
    )


def _one(name: str, ctx: Context, by_name: bool) -> dict[str, Any]:
    if name not in STAGES:
        raise UserError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    started = time.time()
    if name == "ingest":
        output, skipped = ingest.run(ctx)
        return _result(ctx, name, [output], output.require().summary, skipped, started)
    from pahi.stages import cache, curate, evaluate, generate, train

    partitions = ingest.chain(ctx)
    if name in ("cache", "train") and not by_name:
        # Training again is a decision: what was learned on the prompts that this dataset began with stays in use.
        found = train.newest(ctx, partitions)
        if found is not None:
            partitions = found[1]
    if name == "generate":
        outputs, skipped = generate.run(ctx, partitions)
        summary = outputs[-1].require().summary
        if len(outputs) > 1:
            # A grown dataset's pictures lie in several partitions.
            keys = ("prompts", "images", "failed")
            summary = {k: sum(o.require().summary[k] for o in outputs) for k in keys} | {"partitions": len(outputs)}
        return _result(ctx, name, outputs, summary, skipped, started)
    stages = {"cache": cache, "train": train, "evaluate": evaluate, "curate": curate}
    output, skipped = stages[name].run(ctx, partitions)
    summary = evaluate.summary_of(output) if name == "evaluate" else output.require().summary
    return _result(ctx, name, [output], summary, skipped, started)


def _result(
    ctx: Context, name: str, outputs: list[Output], summary: dict[str, Any], skipped: bool, started: float
) -> dict[str, Any]:
    last = outputs[-1]
    return {
        "stage": name,
        "dataset": ctx.settings.name,
        "fingerprint": last.fingerprint,
        "url": last.url,
        "skipped": skipped,
        "seconds": round(time.time() - started, 2),
        "summary": summary,
        "timings": last.read_run().get("ms_per_image", {}),
    }
