"""What every command shares: its options, its settings, how its result is shown, and one line for what went wrong."""

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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pahi.display import Display
from pahi.errors import PahiError, UserError, missing
from pahi.explain import named
from pahi.settings import Settings, load_settings, presets
from pahi.tables import plain

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",  # transformers' and diffusers' bars of loaded weights
    "PREFECT_LOGGING_LEVEL": "WARNING",
}
INTERRUPTED = "interrupted: run the same command again to continue"

EXIT_CODES = "Exit codes: 0 done; 1 failed, or a check found something; 2 a mistake that you can mend; 130 interrupted."


class _Help:
    """A command whose `--help` is not said to take a value."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.metavar = ""
        return option


class _Command(_Help, TyperCommand):
    pass


class _Group(_Help, TyperGroup):
    pass


app = typer.Typer(
    name="pahi",
    cls=_Group,
    help="Makes one-step text-to-image models draw better pictures by learning where in noise space to start.",
    epilog=f"Example: pahi run --preset tiny\n\n{EXIT_CODES}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# How arguments of every command are spelt.
PANEL = "Settings"
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log lines, and the traceback of an error.")]
ROOT_HELP = "The store: a folder, or s3://bucket/prefix; default pahi-data."
RootOption = Annotated[str | None, typer.Option("--root", metavar="PLACE", help=ROOT_HELP)]

# What makes the settings, in the order in which help shows it.
SETTINGS: dict[str, Any] = {
    "preset": Annotated[
        str, typer.Option("--preset", metavar="NAME", help="Settings to start from; `pahi presets` lists them.")
    ],
    "config": Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file over the preset.")],
    "sets": Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as train.steps=500; repeat for more."),
    ],
    "root": Annotated[str | None, typer.Option("--root", metavar="PLACE", help=ROOT_HELP)],
    "name": Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The dataset's name; its preset's or prompt file's where empty."),
    ],
    "prompts": Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="Prompts of your own: txt, csv, tsv, json, jsonl, parquet."),
    ],
}
for _option in SETTINGS.values():
    _option.__metadata__[0].rich_help_panel = PANEL


AS_JSON = "The result as JSON on standard output, and nothing else."


@dataclass
class Answer:
    """What a command found: `show` prints it for people, `--json` prints `value` in its place."""

    value: Any
    show: Callable[[], None]
    code: int = 0  # the exit code


def command(
    name: str, example: str, help: str | None = None, json_help: str = AS_JSON
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Makes a function a command, with an example in its help.

    Every command gets `--json` and `--verbose`. Where its first parameter is `settings`, it gets the options that make
    them in its place; a parameter `display` is how it shows progress, which is silent under `--json`.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        signature = inspect.signature(function).parameters
        configured, shows = "settings" in signature, "display" in signature
        options = {k: p.annotation for k, p in signature.items() if k not in ("settings", "display")}
        defaults = {k: p.default for k, p in signature.items()}
        added = {k: v for k, v in SETTINGS.items() if configured and k not in options}
        options |= (
            {"as_json": Annotated[bool, typer.Option("--json", help=json_help)]} | added | {"verbose": VerboseOption}
        )
        for annotation in options.values():
            if annotation.__origin__ is bool:
                annotation.__metadata__[0].metavar = ""  # a switch takes nothing
        defaults |= {"as_json": False, "verbose": False} | {k: {"preset": "tiny"}.get(k) for k in added}

        @functools.wraps(function)
        def run(**given: Any) -> None:
            start(given.pop("verbose"))
            as_json = given.pop("as_json")
            if configured:
                values = {key: given.get(key) for key in SETTINGS}
                values["name"] = given.get("dataset") or values["name"]
                given = {k: v for k, v in given.items() if k not in added}
                given["settings"] = resolve(values.pop("preset") or "tiny", *values.values())
            if shows:
                given["display"] = Display(quiet=as_json)
            answer = function(**given)
            if as_json:
                print_json(answer.value)
            else:
                answer.show()
            if answer.code:
                raise typer.Exit(answer.code)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=defaults[k], annotation=v)
                for k, v in options.items()
            ]
        )
        run.__annotations__ = options
        app.command(name, cls=_Command, help=help, epilog=f"Example: pahi {example}")(run)
        return function

    return register


def print_json(value: Any) -> None:
    """For machines: numbers that are not finite are null."""
    print(json.dumps(plain(value), default=str, allow_nan=False))


def resolve(
    preset: str,
    config: str | None,
    sets: list[str] | None,
    root: str | None,
    name: str | None,
    prompts: str | None,
) -> Settings:
    """The settings that a command's options make. Raises UserError."""
    for option, given in (("config", config), ("root", root), ("name", name), ("prompts", prompts)):
        if given == "":
            raise UserError(f"--{option} is empty; leave it out, or say which")
    check_root(root)
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


def check_root(root: str | None) -> None:
    """Raises UserError for an address that would be taken for a folder, such as s3:/bucket."""
    if root == "":
        raise UserError("--root is empty; leave it out, or name a folder or an address such as s3://bucket/prefix")
    if re.fullmatch(r"[a-z0-9]+://+", root or ""):
        raise UserError(f"--root {root}: an address goes on with a bucket, as in {root}bucket/prefix")
    if found := re.match(r"(s3a?|gs|gcs|az|abfs|hf|https?|file):/?(?!/)", root or ""):
        raise UserError(f"--root {root}: an address has two slashes, as in {found[1]}://bucket/prefix")


def dataset_name(file: str) -> str:
    """A file's stem, as the name of a dataset."""
    stem = Path(file.rstrip("/").rpartition("/")[2]).stem.lower()
    return re.sub(r"[^a-z0-9._-]+", "-", stem).lstrip("._-")[:63].rstrip("._-") or "prompts"


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

    def takes(option: str) -> bool:
        return name in commands and any(option in p.opts for p in commands[name].params)

    unknown = re.search(r"No such option: --([\w-]+)", message)
    paths = named(unknown[1].replace("-", "_"), Settings) if unknown else []
    extra = re.search(r"unexpected extra arguments?\S* \((.*)\)", message)
    if extra and name == "sample":
        hint = f'put the prompt in quotes: pahi sample "{" ".join(a for a in arguments[1:] if a[:1] != "-")}"'
    elif extra and "=" in extra[1]:
        hint = f"--set takes one setting, so repeat it: --set {extra[1].split()[0]}"
    elif extra and "--set" in arguments:
        hint = "--set takes a setting as one word, such as --set train.beta=0.8"
    elif extra and extra[1] in presets() and takes("--preset"):
        hint = f"a preset is chosen by --preset {extra[1]}"
    elif name == "presets" and "No such option: --preset" in message:
        message, hint = message.partition(" (")[0], "name it after the command, such as `pahi presets sd-turbo`"
    elif paths and takes("--set"):
        message = message.partition(" (")[0]
        hint = "settings are given by " + " or ".join(f"--set {path}=..." for path in paths[:3])
    elif arguments[0].startswith("-") and "No such option" in message:
        option = f"--set {paths[0]}=..." if paths else arguments[0]
        hint = f"options come after the command, such as `pahi {name or 'run'} {option}`"
    elif not re.search("[.?)]$", message):
        message += "."
    return _fail(f"error: {message}{';' if re.search('[^.?]$', message) else ''} {hint}", error.exit_code)


def _fail(message: str, code: int) -> int:
    if _verbose and code != 130:
        traceback.print_exc()
    print(" ".join(message.split()), file=sys.stderr)
    return code


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
