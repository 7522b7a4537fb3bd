"""The command line: `pahi ...`. What takes long to import (torch, Prefect) is imported by the command that needs it."""

import errno
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pahi.display import Display, print_table, size
from pahi.errors import PahiError, UserError
from pahi.settings import Settings, load_settings, presets
from pahi.tables import Row, arm_rows

Result = dict[str, Any]

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",  # transformers' and diffusers' bars of loaded weights
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
# `pahi run` brings Prefect's API with it: no server to start, nothing reported anywhere.
PREFECT = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "pahi",
}
ARMS = "Uplift over the same noise, in within-prompt standard deviations of each reward [95% interval]"
INTERRUPTED = "interrupted: run the same command again to continue"

app = typer.Typer(
    name="pahi",
    help="Makes one-step text-to-image models draw better pictures by learning where in noise space to start.",
    epilog="Example: pahi run --preset tiny",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

PresetOption = Annotated[str, typer.Option("--preset", help="Settings to start from; `pahi presets` lists them.")]
ConfigOption = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file over the preset.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeat for more.")
]
RootOption = Annotated[str | None, typer.Option("--root", help="The store: a folder, or s3://bucket/prefix.")]
NameOption = Annotated[str | None, typer.Option("--name", help="The dataset's name in the store.")]
PromptsOption = Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="Prompts of your own.")]
UpstreamOption = Annotated[bool, typer.Option("--with-upstream", help="First run the stages that this one reads.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log lines, and the traceback of an error.")]
DatasetArgument = Annotated[str | None, typer.Argument(help="The dataset's name, like --name.")]


# ---------------------------------------------------------------------------------------------------------- commands


@app.command(epilog="Example: pahi run --preset tiny --set train.steps=500 --root s3://bucket/prefix")
def run(
    preset: PresetOption = "tiny",
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    prompts: PromptsOption = None,
    direct: Annotated[bool, typer.Option("--direct", help="Without Prefect.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Runs every stage, then writes the report. What is finished is found, not run again."""
    start(verbose)
    settings = resolve(preset, config, sets, root, name, prompts)
    with Display() as display:
        results = _run_directly(settings, display) if direct else _run_flow(settings, display)
    for result in results[:-1]:
        display.result(result)
    for result in results:
        if "arms" in result.get("summary", {}):
            print()
            print_table(
                arm_rows(result), "Uplift over the same noise, in within-prompt standard deviations [95% interval]"
            )
    print(f"\nreport: {results[-1]['url']}")


def _stage_command(stage: str, help: str) -> None:
    @app.command(stage, help=help, epilog=f"Example: pahi {stage} --preset tiny --with-upstream")
    def command(
        preset: PresetOption = "tiny",
        config: ConfigOption = None,
        sets: SetOption = None,
        root: RootOption = None,
        name: NameOption = None,
        prompts: PromptsOption = None,
        with_upstream: UpstreamOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        start(verbose)
        settings = resolve(preset, config, sets, root, name, prompts)
        with Display() as display:
            from pahi.stages import run_stage

            result = run_stage(stage, settings, with_upstream=with_upstream, progress=display)
        display.result(result)
        if "arms" in result["summary"]:
            print_table(arm_rows(result))


for _stage, _help in {
    "ingest": "Reads prompts, cleans them and divides them into splits.",
    "train": "Learns the noise.",
    "evaluate": "Compares the arms on prompts that training never saw.",
    "generate": "Draws pictures with the learned noise.",
    "curate": "Selects pictures and writes the dataset with its card.",
}.items():
    _stage_command(_stage, _help)


@app.command("cache", epilog="Example: pahi cache --preset tiny --fetch-only")
def cache_command(
    preset: PresetOption = "tiny",
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    prompts: PromptsOption = None,
    with_upstream: UpstreamOption = False,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only bring the models into the store.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Pins the models, and scores the standard Gaussian's pictures."""
    start(verbose)
    settings = resolve(preset, config, sets, root, name, prompts)
    from pahi.stages import fetch_models, run_stage

    with Display() as display:
        if fetch_only:
            rows = fetch_models(settings, progress=display)
        else:
            result = run_stage("cache", settings, with_upstream=with_upstream, progress=display)
    if fetch_only:
        print_table(rows)
    else:
        display.result(result)


@app.command(epilog="Example: pahi verify tiny --rows 16")
def verify(
    dataset: DatasetArgument = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to draw again and compare.")] = 8,
    repair: Annotated[bool, typer.Option("--repair", help="Withdraw damaged shards; a rerun makes them anew.")] = False,
    preset: PresetOption = "tiny",
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    prompts: PromptsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Draws rows again and compares; recomputes hashes and counts. Exit code 1 where something is wrong."""
    start(verbose)
    settings = resolve(preset, config, sets, root, dataset or name, prompts)
    from pahi import maintenance

    _checks(maintenance.verify(settings, rows, repair=True) if repair else maintenance.verify(settings, rows))


@app.command(epilog="Example: pahi report tiny")
def report(
    dataset: DatasetArgument = None,
    preset: PresetOption = "tiny",
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    prompts: PromptsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Writes the HTML page of a finished run."""
    start(verbose)
    settings = resolve(preset, config, sets, root, dataset or name, prompts)
    from pahi.stages import write_report

    print(f"report: {write_report(settings)}")


@app.command(epilog="Example: pahi ls --root s3://bucket/prefix")
def ls(root: RootOption = None, verbose: VerboseOption = False) -> None:
    """Lists what the store holds."""
    start(verbose)
    from pahi import maintenance

    rows = maintenance.list_store(_store(root))
    if not rows:
        print("nothing here yet; `pahi run` fills it")
        return
    names = ("dataset", "stage", "fingerprint", "finished", "rows", "bytes")
    show: dict[str, Callable[[Any], str]] = {"bytes": size, "finished": lambda v: {True: "yes", False: "no"}.get(v, v)}
    print_table([{name: show.get(name, str)(row[name]) for name in names} for row in rows])


@app.command(epilog="Example: pahi gc tiny --yes")
def gc(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only list it.")] = False,
    root: RootOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Lists what nothing refers to any more, and removes it with --yes."""
    start(verbose)
    from pahi import maintenance

    store = _store(root)
    prefixes = maintenance.garbage(store, dataset)
    for prefix in prefixes:
        if yes:
            store.delete(prefix)
        print(f"{'removed' if yes else 'would remove'} {store.url(prefix)}")
    if not prefixes:
        print("nothing to remove")
    elif not yes:
        print("nothing was removed; add --yes to remove it")


@app.command("presets", epilog="Example: pahi presets tiny --json")
def list_presets(
    preset: Annotated[str | None, typer.Argument(help="Print this preset's settings.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    prompts: PromptsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: a deployment's `settings` parameter.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Lists what there is to run, or prints one preset's settings with all defaults."""
    start(verbose)
    if preset is None:
        abouts = {key: data.get("about", {}) for key, data in presets().items()}
        names = list(dict.fromkeys(name for about in abouts.values() for name in about))
        print_table(
            [{"preset": key, **{name: str(about.get(name, "")) for name in names}} for key, about in abouts.items()]
        )
        return
    data = resolve(preset, config, sets, root, name, prompts).model_dump(mode="json")
    print(json.dumps(data) if as_json else yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip())


@app.command(epilog="Example: pahi doctor --root s3://bucket/prefix")
def doctor(
    preset: PresetOption = "tiny",
    config: ConfigOption = None,
    sets: SetOption = None,
    root: RootOption = None,
    name: NameOption = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Compare ImageReward with its published package (`make image-reward`).")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Tells what this machine and this store can do. Exit code 1 where something is missing."""
    start(verbose)
    settings = resolve(preset, config, sets, root, name, None)
    from pahi import maintenance

    _checks(maintenance.doctor(settings, reference=reference) + _prefect_checks())


# ---------------------------------------------------------------------------------------------------------- settings


def resolve(
    preset: str,
    config: str | None,
    sets: list[str] | None,
    root: str | None,
    name: str | None,
    prompts: str | None,
) -> Settings:
    """The settings that a command's options make. Raises UserError."""
    overrides: list[str] = []
    if prompts is not None:
        if "://" not in prompts and not prompts.startswith("pkg:") and not Path(prompts).is_file():
            raise UserError(f"--prompts {prompts}: there is no such file")
        overrides.append(f"ingest.sources={json.dumps([{'path': prompts}])}")
        # A preset's limits are made for its own prompts.
        if config is None and preset == "tiny":
            overrides += ["cache.max_train_prompts=null", "cache.max_validation_prompts=null"]
        if name is None and not any(key.partition("=")[0].strip() == "name" for key in sets or []):
            name = dataset_name(prompts)
    return load_settings(preset, config, [*overrides, *(sets or [])], root=root, name=name)


def dataset_name(file: str) -> str:
    """A file's stem, as the name of a dataset."""
    stem = Path(file.rstrip("/").rpartition("/")[2]).stem.lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:63].rstrip("._-") or "prompts"


def _store(root: str | None) -> Any:
    from pahi.artifacts import Store

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
        raise UserError(f"{error.name} is not installed here; `pahi run --direct` runs without it") from None
    with listening(display):
        try:
            return pipeline(settings)
        except Exception as error:
            # What Prefect wrapped around it is of no use to whoever typed the command.
            inner = unwrapped(error)
            if inner is not error:
                raise inner from error
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


def unwrapped(error: BaseException) -> BaseException:
    """The PahiError, KeyboardInterrupt or OSError at the bottom of an exception, or the exception itself."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, PahiError | KeyboardInterrupt) or getattr(one, "errno", None) == errno.ENOSPC:
            return one
        waiting += [e for e in (*getattr(one, "exceptions", ()), one.__cause__, one.__context__) if e is not None]
    return error


def _checks(checks: list[Row]) -> None:
    for check in checks:
        print(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['check']}: {check['detail']}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


# -------------------------------------------------------------------------------------------------------------- main

_verbose = False


def start(verbose: bool) -> None:
    """Sets the tone of what the libraries say, before any of them is imported."""
    global _verbose
    _verbose = verbose
    if verbose:
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    else:
        for key, value in QUIET.items():
            os.environ.setdefault(key, value)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def main(arguments: list[str] | None = None) -> None:
    """Runs a command; whatever goes wrong ends in one line and an exit code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """A command's exit code; what went wrong is one line on standard error."""
    try:
        code = int(app(arguments, prog_name="pahi", standalone_mode=False) or 0)
        # Typer turns an interrupt into this code, without a word.
        return _fail(INTERRUPTED, 130) if code == 130 else code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTED, 130)
    except typer.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        # `pahi ls | head`: nobody listens any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        inner = unwrapped(error)
        if isinstance(inner, KeyboardInterrupt):
            return _fail(INTERRUPTED, 130)
        if isinstance(inner, PahiError):
            return _fail(f"error: {inner}", inner.exit_code)
        if isinstance(inner, OSError) and inner.errno == errno.ENOSPC:
            where = f" ({inner.filename})" if inner.filename else ""
            return _fail(f"error: the disk is full{where}; free some space, then run again: finished work is kept", 2)
        if callable(getattr(error, "format_message", None)):  # typer's own: an unknown option, a missing value
            return _usage(error)
        return _fail(f"error: {type(inner).__name__}: {inner} (add -v for the traceback)", 1)


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    path = context.command_path if context is not None else "pahi"
    return _fail(f"error: {error.format_message()} `{path} --help` shows what there is", error.exit_code)


def _fail(message: str, code: int) -> int:
    if _verbose and code != 130:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
