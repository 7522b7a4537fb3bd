"""The command line: `pahi ...`. What takes long to import (torch, Prefect) is imported by the command that needs it."""

import errno
import functools
import inspect
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
from pahi.errors import PahiError, UserError, missing
from pahi.settings import Settings, load_settings, presets
from pahi.tables import Row, arm_rows, plain, source_rows

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

EXIT_CODES = "Exit codes: 0 done; 1 failed, or a check found something; 2 a mistake that you can mend; 130 interrupted."

app = typer.Typer(
    name="pahi",
    help="Makes one-step text-to-image models draw better pictures by learning where in noise space to start.",
    epilog=f"Example: pahi run --preset tiny\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# How arguments of every command are spelt.
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log lines, and the traceback of an error.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output, and nothing else.")]
RootOption = Annotated[str | None, typer.Option("--root", help="The store: a folder, or s3://bucket/prefix.")]
UpstreamOption = Annotated[bool, typer.Option("--with-upstream", help="First run the stages that this one reads.")]
DatasetArgument = Annotated[str | None, typer.Argument(help="The dataset's name, like --name.")]

# What makes the settings, in the order in which help shows it.
SETTINGS: dict[str, Any] = {
    "preset": Annotated[str, typer.Option("--preset", help="Settings to start from; `pahi presets` lists them.")],
    "config": Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file over the preset.")],
    "sets": Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeat for more.")
    ],
    "root": RootOption,
    "name": Annotated[str | None, typer.Option("--name", help="The dataset's name in the store.")],
    "prompts": Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="Prompts of your own.")],
}


def command(name: str, example: str, help: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a command, with an example in its help. Where its first parameter is `settings`, it gets the
    options that make them in its place; `--verbose` every command gets."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in inspect.signature(function).parameters.values()
        ]
        configured = parameters[0].name == "settings"
        own = {p.name for p in parameters}
        added = {k: v for k, v in SETTINGS.items() if k not in own} if configured else {}
        for key, annotation in (added | {"verbose": VerboseOption}).items():
            default = {"preset": "tiny", "verbose": False}.get(key)
            option = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            parameters.append(option)
        parameters = [p for p in parameters if p.name != "settings"]

        @functools.wraps(function)
        def run(**given: Any) -> None:
            start(given.pop("verbose"))
            if configured:
                values = {key: given.get(key) for key in SETTINGS}
                values["name"] = given.get("dataset") or values["name"]
                given = {k: v for k, v in given.items() if k not in added}
                given["settings"] = resolve(values.pop("preset") or "tiny", *values.values())
            function(**given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, help=help, epilog=f"Example: pahi {example}")(run)
        return function

    return register


# ---------------------------------------------------------------------------------------------------------- commands


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="The version.")] = False) -> None:
    if show:
        from pahi import __version__

        print(f"pahi {__version__}")
        raise typer.Exit()


@command("run", "run --preset tiny --set train.steps=500 --root s3://bucket/prefix")
def run(
    settings: Settings,
    direct: Annotated[bool, typer.Option("--direct", help="Without Prefect.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Runs every stage, then writes the report. What is finished is found, not run again."""
    from pahi.curation.card import require_license

    require_license(settings.generator.license)  # the last stage needs it: better said before hours of work
    with Display(quiet=as_json) as display:
        results = _run_directly(settings, display) if direct else _run_flow(settings, display)
    if as_json:
        print_json(results)
        return
    for result in results[:-1]:
        display.result(result)
    for result in results:
        if "arms" in result.get("summary", {}):
            print()
            print_table(arm_rows(result), ARMS)
    print(f"\nreport: {results[-1]['url']}")


def _stage(name: str, help: str) -> None:
    @command(name, f"{name} --preset tiny --with-upstream", help)
    def stage(settings: Settings, with_upstream: UpstreamOption = False, as_json: JsonOption = False) -> None:
        _run_stage(name, settings, with_upstream, as_json)


def _run_stage(name: str, settings: Settings, with_upstream: bool, as_json: bool) -> None:
    with Display(quiet=as_json) as display:
        from pahi.stages import run_stage

        result = run_stage(name, settings, with_upstream=with_upstream, progress=display)
    if as_json:
        print_json(result)
        return
    display.result(result)
    if "arms" in result["summary"]:
        print_table(arm_rows(result), ARMS)
    if "sources" in result["summary"]:
        print_table(source_rows(result))


for _name, _help in {
    "ingest": "Reads prompts, cleans them and divides them into splits.",
    "train": "Learns the noise.",
    "evaluate": "Compares the arms on prompts that training never saw.",
    "generate": "Draws pictures with the learned noise.",
}.items():
    _stage(_name, _help)


@command("cache", "cache --preset tiny --fetch-only")
def cache_command(
    settings: Settings,
    with_upstream: UpstreamOption = False,
    fetch_only: Annotated[bool, typer.Option("--fetch-only", help="Only bring the models into the store.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Pins the models, and scores the standard Gaussian's pictures."""
    if not fetch_only:
        _run_stage("cache", settings, with_upstream, as_json)
        return
    from pahi.stages import fetch_models

    with Display(quiet=as_json) as display:
        rows = fetch_models(settings, progress=display)
    if as_json:
        print_json(rows)
    else:
        print_table(rows)


@command("curate", "curate --preset tiny --set curate.top_k=1 --dry-run")
def curate_command(
    settings: Settings,
    with_upstream: UpstreamOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be kept, and why not.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Selects pictures and writes the dataset with its card."""
    if not dry_run:
        _run_stage("curate", settings, with_upstream, as_json)
        return
    if with_upstream:
        raise UserError("--dry-run writes nothing, so it cannot run other stages; leave out --with-upstream")
    from pahi.stages import plan_curation

    with Display(quiet=as_json) as display:
        summary = plan_curation(settings, progress=display)
    if as_json:
        print_json(summary)
        return
    print_table(
        [{"step": s["name"], "pictures left": f"{s['rows']:,}", "what it drops": s["note"]} for s in summary["funnel"]]
    )
    print(", ".join(f"{n:,} {split}" for split, n in summary["splits"].items()), end="; ")
    print(f"{sum(summary['preferences'].values()):,} preference pairs; nothing was written")


@command("publish", "publish hf://datasets/me/shapes --preset tiny")
def publish(
    settings: Settings,
    target: Annotated[str, typer.Argument(help="hf://datasets/OWNER/NAME, a folder, or s3://bucket/prefix.")],
    preferences: Annotated[bool, typer.Option("--preferences", help="The preference pairs, as a dataset.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A new dataset on the Hub is private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copies the curated dataset to the Hub or elsewhere; run again, it sends only what is missing."""
    from pahi.stages import publish as send

    with Display(quiet=as_json) as display:
        done = send(settings, target, preferences=preferences, private=private, progress=display)
    if as_json:
        print_json(done)
        return
    print(f"{done['url']}: {done['sent']} files sent, {done['unchanged']} there already, {done['removed']} removed")


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
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draws one prompt with the learned noise."""
    from pahi.sample import draw

    if out is None and compare is None:
        out = Path("sample.png")
    found = draw(settings, prompt, predictor, seed, out, compare)
    if as_json:
        print_json(found)
        return
    for path in found["files"]:
        print(f"wrote {path}")


@command("verify", "verify tiny --rows 16")
def verify(
    settings: Settings,
    dataset: DatasetArgument = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to draw again and compare.")] = 8,
    repair: Annotated[bool, typer.Option("--repair", help="Withdraw damaged shards; a rerun makes them anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Draws rows again and compares; recomputes hashes and counts. Exit code 1 where something is wrong."""
    from pahi import maintenance

    _checks(maintenance.verify(settings, rows, repair=True) if repair else maintenance.verify(settings, rows), as_json)


@command("report", "report tiny")
def report(settings: Settings, dataset: DatasetArgument = None, as_json: JsonOption = False) -> None:
    """Writes the HTML page of a finished run."""
    from pahi.stages import write_report

    url = write_report(settings)
    if as_json:
        print_json({"dataset": settings.name, "url": url})
    else:
        print(f"report: {url}")


@command("ls", "ls --root s3://bucket/prefix")
def ls(root: RootOption = None, as_json: JsonOption = False) -> None:
    """Lists what the store holds."""
    from pahi import maintenance

    rows = maintenance.list_store(_store(root))
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("nothing here yet; `pahi run` fills it")
        return
    names = ("dataset", "stage", "fingerprint", "finished", "rows", "bytes")
    show: dict[str, Callable[[Any], str]] = {"bytes": size, "finished": lambda v: {True: "yes", False: "no"}.get(v, v)}
    print_table([{name: show.get(name, str)(row[name]) for name in names} for row in rows])


@command("gc", "gc tiny --yes")
def gc(
    dataset: Annotated[str | None, typer.Argument(help="Only this dataset.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only list it.")] = False,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists what nothing refers to any more, and removes it with --yes."""
    from pahi import maintenance

    store = _store(root)
    prefixes = maintenance.garbage(store, dataset)
    for prefix in prefixes:
        if yes:
            store.delete(prefix)
        if not as_json:
            print(f"{'removed' if yes else 'would remove'} {store.url(prefix)}")
    if as_json:
        print_json([{"url": store.url(prefix), "removed": yes} for prefix in prefixes])
    elif not prefixes:
        print("nothing to remove")
    elif not yes:
        print("nothing was removed; add --yes to remove it")


@command("presets", "presets tiny --json")
def list_presets(
    settings: Settings,
    preset: Annotated[str | None, typer.Argument(help="Print this preset's settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: a deployment's `settings` parameter.")] = False,
) -> None:
    """Lists what there is to run, or prints one preset's settings with all defaults."""
    if preset is None:
        abouts = {key: data.get("about", {}) for key, data in presets().items()}
        names = list(dict.fromkeys(name for about in abouts.values() for name in about))
        rows = [{"preset": key, **{name: str(about.get(name, "")) for name in names}} for key, about in abouts.items()]
        if as_json:
            print_json(rows)
        else:
            print_table(rows)
        return
    data = settings.model_dump(mode="json")
    print(json.dumps(data) if as_json else yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip())


@command("doctor", "doctor --root s3://bucket/prefix")
def doctor(
    settings: Settings,
    reference: Annotated[
        bool, typer.Option("--reference", help="Compare ImageReward with its published package (`make image-reward`).")
    ] = False,
    clean: Annotated[bool, typer.Option("--clean", help="Remove what dead runs left behind a day ago.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tells what this machine and this store can do. Exit code 1 where something is missing."""
    from pahi import maintenance

    _checks(maintenance.doctor(settings, reference=reference, clean=clean) + _prefect_checks(), as_json)


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
            raise UserError(
                f"--prompts {prompts}: {'is a folder' if Path(prompts).is_dir() else 'there is no such file'}"
            )
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


def print_json(value: Any) -> None:
    """For machines: numbers that are not finite are null."""
    print(json.dumps(plain(value), default=str, allow_nan=False))


def _checks(checks: list[Row], as_json: bool) -> None:
    if as_json:
        print_json(checks)
    else:
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
    # `module:function` of a callable reward names a file beside which the command was typed.
    if "" not in sys.path:
        sys.path.insert(0, "")
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """A command's exit code; what went wrong is one line on standard error."""
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
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
        if isinstance(inner, ImportError) and missing(inner):
            return _fail(f"error: {inner}{missing(inner)}", 2)
        if callable(getattr(error, "format_message", None)):  # typer's own: an unknown option, a missing value
            return _usage(error, arguments)
        return _fail(f"error: {type(inner).__name__}: {inner} (add -v for the traceback)", 1)


def _usage(error: Any, arguments: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 2
    message = error.format_message().rstrip(". ").replace("Input should", "it should")
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name = next((a for a in arguments if a in commands), "")
    hint = f"`pahi {name}{' ' * bool(name)}--help` shows what there is"
    extra = re.search(r"unexpected extra arguments?\S* \((.*)\)", message)
    if extra and name == "sample":
        hint = f'put the prompt in quotes: pahi sample "{" ".join(a for a in arguments[1:] if a[:1] != "-")}"'
    elif extra and "=" in extra[1]:
        hint = f"--set takes one setting, so repeat it: --set {extra[1].split()[0]}"
    elif extra and extra[1] in presets() and any(p.name == "preset" for p in commands[name].params):
        hint = f"a preset is chosen by --preset {extra[1]}"
    elif arguments[0].startswith("-") and "No such option" in message:
        hint = f"options come after the command, such as `pahi {name or 'run'} {arguments[0]}`"
    elif not re.search("[.?)]$", message):
        message += "."
    return _fail(f"error: {message}{';' if re.search('[^.?]$', message) else ''} {hint}", error.exit_code)


def _fail(message: str, code: int) -> int:
    if _verbose and code != 130:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
