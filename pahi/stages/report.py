"""report.html of whatever is finished. It reads manifests and tables, and decides nothing."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pahi.artifacts import Output
from pahi.evaluation.summary import main_arm
from pahi.settings import presets
from pahi.stages import cache, curate, evaluate, generate, ingest, train
from pahi.stages.common import Context, missing

PACKAGES = ("torch", "diffusers", "transformers", "pyarrow", "prefect")


def write(ctx: Context) -> str:
    """Writes `<dataset>/report.html` and before-after.png; returns the page's place.

    Raises UserError where nothing was evaluated yet.
    """
    from pahi.reports import build_report
    from pahi.reports.sheet import sheet

    partitions = ingest.chain(ctx)
    evaluated = evaluate.locate(ctx, partitions)
    if evaluated is None:
        raise missing(ctx, "report", evaluate.STAGE)
    page = build_report(collect(ctx, partitions, evaluated))
    key = f"{ctx.settings.name}/report.html"
    if ctx.store.read_or_none(key) != page.encode():
        ctx.store.replace(key, page.encode())
    gallery = evaluated.read("gallery").to_pylist()
    if gallery:
        picture, key_picture = sheet(gallery), f"{ctx.settings.name}/before-after.png"
        if ctx.store.read_or_none(key_picture) != picture:
            ctx.store.replace(key_picture, picture)
    return ctx.store.url(key)


def collect(ctx: Context, partitions: ingest.Chain, evaluated: Output) -> dict[str, Any]:
    """Everything the page shows."""
    summary = evaluate.summary_of(evaluated)
    timings = evaluated.read_run().get("ms_per_image", {})
    summary["arms"] = [{**arm, "ms_per_image": timings.get(arm["arm"])} for arm in summary["arms"]]
    found = train.newest(ctx, partitions)
    assert found is not None  # the evaluation is of it
    trained, base = found
    cached = cache.locate(ctx, base)
    drawn = generate.locate_all(ctx, partitions) or []
    curated = curate.locate(ctx, partitions)
    stages = [
        *partitions.outputs,
        *([cached] if cached else []),
        trained,
        evaluated,
        *drawn,
        *([curated] if curated else []),
    ]

    arm = str(main_arm(a["arm"] for a in summary["arms"]))
    scores: dict[tuple[str, str, int, str], float | None] = {
        (r["arm"], r["prompt_id"], r["seed"], r["reward"]): r["score"]
        for r in evaluated.read("scores").to_pylist()
        if r["arm"] in ("standard", arm)
    }
    names = [m.name for m in ctx.reward_models]
    main, units = summary["train_reward"], summary["units"]
    read = partitions.prompts(["prompt_id", "source"])
    sources = dict(zip(read["prompt_id"].to_pylist(), read["source"].to_pylist(), strict=True))
    gallery = []
    for row in evaluated.read("gallery").to_pylist():
        pair = {
            name: [scores.get((a, row["prompt_id"], row["seed"], name)) for a in ("standard", arm)] for name in names
        }
        before, after = pair[main]
        up = (after - before) / units[main] if before is not None and after is not None and units[main] else 0.0
        entry = {k: row[k] for k in ("prompt_id", "prompt", "kind", "seed")}
        entry["source"] = sources.get(row["prompt_id"])
        gallery.append(
            {**entry, "uplift": up, "scores": pair, "before": row["before"]["bytes"], "after": row["after"]["bytes"]}
        )
    histograms: dict[str, dict[str, list[float]]] = {}
    for name in names:
        histograms[name] = {
            label: [s for (a, _, _, n), s in scores.items() if a == a_name and n == name and s is not None]
            for label, a_name in (("standard", "standard"), ("pahi", arm))
        }
    funnel = [
        {"name": "prompts read", "rows": sum(o.require().summary["rows_in"] for o in partitions.outputs), "note": ""}
    ]
    funnel.append(
        {"name": "prompts kept", "rows": sum(o.require().rows("prompts") for o in partitions.outputs), "note": ""}
    )
    if curated:
        funnel += curated.require().summary["funnel"]
    settings = ctx.settings.model_dump(mode="json")
    return {
        "dataset": ctx.settings.name,
        "generated_by": f"pahi {_version('pahi')}",
        "preset_line": ctx.settings.generator.id,
        "evaluate": summary,
        "gallery": gallery,
        "metrics": trained.read("metrics").to_pylist(),
        "histograms": histograms,
        "funnel": funnel,
        "lineage": [
            {"stage": o.stage, "fingerprint": o.fingerprint, "hash": o.require().hash, "url": o.url} for o in stages
        ],
        "settings": settings,
        "versions": {name: _version(name) for name in PACKAGES},
        "redraw": redraw(ctx, trained.url),
    }


def redraw(ctx: Context, trained: str) -> str:
    """The command that draws a row of the gallery again, `{prompt}` and `{seed}` to be filled in."""
    own = ctx.settings.generator
    for name, data in presets().items():
        if own == type(own).model_validate(data["generator"]):
            generator = f"--preset {name}"
            break
    else:
        given = json.dumps(own.model_dump(mode="json", exclude_defaults=True))
        generator = f"--set {shlex.quote(f'generator={given}')}"
    predictor = shlex.quote(f"{trained}/predictor")
    return f"pahi sample {{prompt}} {generator} --predictor {predictor} --seed {{seed}} --compare pair.png"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
