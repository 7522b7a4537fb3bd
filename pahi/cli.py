"""The command line: `pahi ...`. What takes long to import (torch, Prefect) is imported by the command that needs it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pahi.display import Display, print_table, size
from pahi.errors import UserError, missing
from pahi.invocation import (
    EXIT_CODES,
    SETTINGS,
    Answer,
    RootOption,
    app,
    call,
    check_root,
    command,
    dataset_name,
    main,
    print_json,
    resolve,
    unwrapped,
)
from pahi.settings import Settings, presets
from pahi.tables import Row, arm_rows, source_rows

__all__ = ["EXIT_CODES", "SETTINGS", "app", "call", "dataset_name", "main", "print_json", "resolve", "unwrapped"]

Result = dict[str, Any]

# `pahi run` brings Prefect's API with it: no server to start, nothing reported anywhere.
PREFECT = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pahi",
}
ARMS = "Uplift over the same noise, in within-prompt standard deviations of each reward [95% interval]"
SPARE = ("wins, ", "features", "ms/image")  # columns that a narrow terminal goes without

UpstreamOption = Annotated[bool, typer.Option("--with-upstream", help="First run the stages that this one reads.")]
DatasetArgument = Annotated[str | None, typer.Argument(help="The dataset's name, like --name.")]

# ---------------------------------------------------------------------------------------------------------- commands


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", metavar="", help="The version.")] = False) -> None:
    if show:
        from pahi import __version__

        print(f"pahi {__version__}")
        raise typer.Exit()


@command("run", "run --preset tiny --set train.steps=500 --root s3://bucket/prefix")
def run(
    settings: Settings,
    display: Display,
    direct: Annotated[bool, typer.Option("--direct", help="In this process, without Prefect.")] = False,
) -> Answer:
    """Runs every stage, then writes the report. What is finished is found, not run again."""
    from pahi.curation.card import require_license

    require_license(settings.generator.license)  # the last stage needs it: better said before hours of work
    with display:
        results = _run_directly(settings, display) if direct else _run_flow(settings, display)

    def show() -> None:
        for result in results[:-1]:
            display.result(result)
        for result in results:
            if "arms" in result.get("summary", {}):
                print()
                print_table(arm_rows(result), ARMS, SPARE)
        print(f"\nreport: {results[-1]['url']}")

    return Answer(results, show)


def _stage(example: str, help: str) -> None:
    name = example.partition(" ")[0]

    @command(name, example, help)
    def stage(settings: Settings, display: Display, with_upstream: UpstreamOption = False) -> Answer:
        return _run_stage(name, settings, display, with_upstream)


def _run_stage(name: str, settings: Settings, display: Display, with_upstream: bool) -> Answer:
    with display:
        from pahi.stages import run_stage

        result = run_stage(name, settings, with_upstream=with_upstream, progress=display)

    def show() -> None:
        display.result(result)
        if "arms" in result["summary"]:
            print_table(arm_rows(result), ARMS, SPARE)
        if "sources" in result["summary"]:
            print_table(source_rows(result))

    return Answer(result, show)


# In the order in which they run, which is that of the help.
@command("ingest", "ingest --prompts my_prompts.txt")
def ingest(settings: Settings, display: Display) -> Answer:
    """Reads prompts, cleans them and divides them into splits.

    What is new becomes a partition of its own; every row that is left out keeps its reason.
    """
    return _run_stage("ingest", settings, display, with_upstream=False)


@command("cache", "cache --preset sd-turbo --fetch-only")
def cache(
    settings: Settings,
    display: Display,
    with_upstream: UpstreamOption = False,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only bring the models into the store.")] = False,
) -> Answer:
    """Pins the models, and scores the standard Gaussian's pictures.

    Every checkpoint is fetched once and gets its hash. Training reads the embeddings and rewards that are kept here.
    """
    if not fetch_only:
        return _run_stage("cache", settings, display, with_upstream)
    from pahi.stages import fetch_models

    with display:
        rows = fetch_models(settings, progress=display)
    return Answer(rows, lambda: print_table(rows))


_stage(
    "train --set train.beta=0.8 --with-upstream",
    "Learns the noise.\n\n"
    "First one Gaussian for all prompts (HPI), then one that reads the prompt (PAHI). Stopped, it goes on from there.",
)
_stage(
    "evaluate --set 'evaluate.best_of=[4, 16]' --with-upstream",
    "Compares the arms on prompts that training never saw.\n\n"
    "From the same noise: the standard Gaussian, HPI, PAHI, PAHI with prompts shuffled, and the best of N.",
)
_stage(
    "generate --set generate.images_per_prompt=4",
    "Draws pictures with the learned noise.\n\n"
    "Of every prompt that was ingested; what is drawn already is found. A control group is drawn from the standard "
    "Gaussian too, and shows the uplift while it runs.",
)


@command("curate", "curate --preset tiny --set curate.top_k=1 --dry-run")
def curate(
    settings: Settings,
    display: Display,
    with_upstream: UpstreamOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be kept, and why not.")] = False,
) -> Answer:
    """Selects pictures and writes the dataset with its card.

    Parquet files that `datasets.load_dataset` opens as pictures, preference pairs, and why the others were left out.
    """
    if not dry_run:
        return _run_stage("curate", settings, display, with_upstream)
    if with_upstream:
        raise UserError("--dry-run writes nothing, so it cannot run other stages; leave out --with-upstream")
    from pahi.stages import plan_curation

    with display:
        summary = plan_curation(settings, progress=display)

    def show() -> None:
        steps = summary["funnel"]
        print_table([{"step": s["name"], "pictures left": f"{s['rows']:,}", "what it drops": s["note"]} for s in steps])
        print(", ".join(f"{n:,} {split}" for split, n in summary["splits"].items()), end="; ")
        print(f"{sum(summary['preferences'].values()):,} preference pairs; nothing was written")

    return Answer(summary, show)


@command("publish", "publish hf://datasets/me/shapes --preset tiny")
def publish(
    settings: Settings,
    display: Display,
    target: Annotated[str, typer.Argument(help="hf://datasets/OWNER/NAME, a folder, or s3://bucket/prefix.")],
    preferences: Annotated[bool, typer.Option("--preferences", help="The preference pairs, as a dataset.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A new dataset on the Hub is private.")] = False,
) -> Answer:
    """Copies the curated dataset to the Hub or elsewhere; run again, it sends only what is missing."""
    from pahi.stages import publish as send

    with display:
        done = send(settings, target, preferences=preferences, private=private, progress=display)
    counts = "{sent} files sent, {unchanged} there already, {removed} removed".format(**done)
    return Answer(done, lambda: print(f"{done['url']}: {counts}"))


@command("sample", 'sample "a red circle" --compare red-circle.png')
def sample(
    settings: Settings,
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    predictor: Annotated[
        str | None,
        typer.Option("--predictor", metavar="FOLDER", help="Folder or Hub id; the dataset's newest where empty."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The picture; sample.png.")] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="Two pictures side by side: the same noise without and with."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the noise.")] = 0,
) -> Answer:
    """Draws one prompt with the learned noise."""
    from pahi.sample import draw

    if out is None and compare is None:
        out = Path("sample.png")
    found = draw(settings, prompt, predictor, seed, out, compare)
    return Answer(found, lambda: print("\n".join(f"wrote {path}" for path in found["files"])))


@command("verify", "verify tiny --rows 16")
def verify(
    settings: Settings,
    dataset: DatasetArgument = None,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Rows to draw again and compare.")] = 8,
    repair: Annotated[bool, typer.Option("--repair", help="Withdraw damaged shards; a rerun makes them anew.")] = False,
) -> Answer:
    """Draws rows again and compares; recomputes hashes and counts. Exit code 1 where something is wrong."""
    from pahi import maintenance

    return _checks(maintenance.verify(settings, rows, repair=True) if repair else maintenance.verify(settings, rows))


@command("report", "report tiny")
def report(settings: Settings, dataset: DatasetArgument = None) -> Answer:
    """Writes the HTML page of a finished run."""
    from pahi.stages import write_report

    if dataset is not None:
        store = _store(settings.root)
        _holds(store, dataset, store.children(""))
    url = write_report(settings)
    return Answer({"dataset": settings.name, "url": url}, lambda: print(f"report: {url}"))


@command("ls", "ls --root s3://bucket/prefix")
def ls(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None, root: RootOption = None
) -> Answer:
    """Lists what the store holds."""
    from pahi import maintenance

    store = _store(root)
    rows = maintenance.list_store(store)
    if dataset is not None:
        _holds(store, dataset, [row["dataset"] for row in rows])
        rows = [row for row in rows if row["dataset"] == dataset]

    def show() -> None:
        if not rows:
            print("nothing here yet; `pahi run` fills it")
            return
        names = ("dataset", "stage", "fingerprint", "finished", "rows", "bytes")
        say: dict[str, Callable[[Any], str]] = {
            "bytes": size,
            "finished": lambda v: {True: "yes", False: "no"}.get(v, v),
        }
        print_table([{name: say.get(name, str)(row[name]) for name in names} for row in rows])

    return Answer(rows, show)


@command("gc", "gc tiny --yes")
def gc(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only list it.")] = False,
    root: RootOption = None,
) -> Answer:
    """Lists what nothing refers to any more, and removes it with --yes."""
    from pahi import maintenance

    store = _store(root)
    prefixes = maintenance.garbage(store, dataset)
    if dataset is not None and not prefixes:
        _holds(store, dataset, [row["dataset"] for row in maintenance.list_store(store)])
    if yes:
        for prefix in prefixes:
            store.delete(prefix)

    def show() -> None:
        for prefix in prefixes:
            print(f"{'removed' if yes else 'would remove'} {store.url(prefix)}")
        if not prefixes:
            print("nothing to remove")
        elif not yes:
            print("nothing was removed; add --yes to remove it")

    return Answer([{"url": store.url(prefix), "removed": yes} for prefix in prefixes], show)


@command("presets", "presets tiny --json", json_help="As JSON: a deployment's `settings` parameter.")
def list_presets(
    settings: Settings,
    preset: Annotated[str | None, typer.Argument(help="Print this preset's settings.")] = None,
) -> Answer:
    """Lists what there is to run, or prints one preset's settings with all defaults."""
    if preset is not None:
        data = settings.model_dump(mode="json")
        return Answer(data, lambda: print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()))
    abouts = {key: data.get("about", {}) for key, data in presets().items()}
    names = list(dict.fromkeys(name for about in abouts.values() for name in about))
    rows = [{"preset": key, **{name: str(about.get(name, "")) for name in names}} for key, about in abouts.items()]
    return Answer(rows, lambda: print_table(rows))


@command("doctor", "doctor --root s3://bucket/prefix")
def doctor(
    settings: Settings,
    reference: Annotated[
        bool, typer.Option("--reference", help="Compare ImageReward with its published package (`make image-reward`).")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what dead runs left behind a day ago.")] = False,
) -> Answer:
    """Tells what this machine and this store can do. Exit code 1 where something is missing."""
    from pahi import maintenance

    return _checks(maintenance.doctor(settings, reference=reference, clean=clean) + _prefect_checks())


def _checks(checks: list[Row]) -> Answer:
    def show() -> None:
        for check in checks:
            print(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['check']}: {check['detail']}")

    return Answer(checks, show, code=0 if all(check["ok"] for check in checks) else 1)


def _holds(store: Any, dataset: str, names: list[str]) -> None:
    if dataset not in names:
        if "/" in dataset:
            raise UserError(f"{dataset!r} is no dataset's name; a store is given by --root {dataset}")
        raise UserError(f"{store.root} holds no dataset {dataset!r}; `pahi ls` shows what there is")


def _store(root: str | None) -> Any:
    from pahi.artifacts import Store

    check_root(root)
    return Store(root or Settings.model_fields["root"].default)


# ----------------------------------------------------------------------------------------------------------- running


def _run_directly(settings: Settings, display: Display) -> list[Result]:
    from pahi.stages import run_all

    return run_all(settings, progress=display)


def _run_flow(settings: Settings, display: Display) -> list[Result]:
    for key, value in PREFECT.items():
        os.environ.setdefault(key, value)
    try:
        from flows.common import listening
        from flows.pipeline import pipeline
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("prefect", "flows"):
            raise
        raise UserError(
            f"{error.name} is not installed here{missing(error)}, or run without it: `pahi run --direct`"
        ) from None
    with listening(display):
        try:
            return pipeline(settings)
        except Exception as error:
            # What Prefect wrapped around it is of no use to whoever typed the command.
            inner = unwrapped(error)
            if inner is not error:
                raise inner from error
            if "ephemeral Prefect API server" in str(error):
                raise UserError(f"{error}; try again when the machine is less busy, or `pahi run --direct`") from error
            if type(error).__module__.split(".")[0] in ("httpx", "httpcore"):
                where = os.environ.get("PREFECT_API_URL", "its own API")
                raise UserError(f"cannot reach Prefect ({where}): {error}; `pahi run --direct` needs none") from error
            raise


def _prefect_checks() -> list[Row]:
    try:
        from flows.doctor import checks
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("prefect", "flows"):
            raise
        return [{"check": "prefect", "ok": False, "detail": "not installed: `pahi run --direct` works without it"}]
    return checks()


if __name__ == "__main__":
    main()
