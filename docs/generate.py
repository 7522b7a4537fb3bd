"""Writes the pages that repeat the code: settings.md from the pydantic models, commands.md from the command line and
prefect.yaml.

    python docs/generate.py            # writes them
    python docs/generate.py --check    # exit code 1 where one is not as the code is
"""

import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import yaml

from pahi.cli import EXIT_CODES, app
from pahi.settings import RUNTIME, Settings, Tree

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py. Change the code, then run that. -->\n"


def settings_page() -> str:
    """Every setting: what it is called, what it takes, and what it means."""
    out = [
        NOTE,
        "# Settings",
        "",
        "One tree. A preset comes first, then a file (`--config my.yaml`), then `--set key=value`, each over the one",
        "before. A key that is not on this page is an error. `pahi presets tiny` prints a preset with all its values.",
        "",
        "    pahi run --preset tiny --set train.steps=200 --set 'evaluate.best_of=[4, 16]'",
        "",
        "Values are YAML: `null` empties a setting, `[4, 16]` is a list, `rewards.train.0.weight` is an entry of one.",
        "**Runtime** settings change how fast a run is, not what it writes. Every other one is part of its stage's",
        "fingerprint: a changed value makes a new output beside the old one.",
        "",
    ]
    for title, model, prefix in sections(Settings, "", "The run"):
        out += [f"## {title}", "", (model.__doc__ or "").strip(), "", "| setting | takes | default | meaning |"]
        out.append("|---|---|---|---|")
        for name, field in model.model_fields.items():
            if prefix == "" and inner(field.annotation) is not None:
                continue  # a section of its own
            default = "required" if field.is_required() else value(field.get_default(call_default_factory=True))
            text = field.description or ""
            if field.json_schema_extra == RUNTIME:
                text += " *Runtime.*"
            out.append(f"| `{prefix}{name}` | {takes(field)} | {default} | {cell(text)} |")
        out.append("")
    return "\n".join(out).rstrip() + "\n"


def sections(model: type[Tree], prefix: str, title: str) -> list[tuple[str, type[Tree], str]]:
    """The trees of settings in the order of their fields, each once, with the prefix of its keys."""
    found = [(title, model, prefix)]
    seen = {model}
    for name, field in model.model_fields.items():
        below = inner(field.annotation)
        if below is not None and below not in seen:
            seen.add(below)
            key = f"{prefix}{name}{many(field.annotation)}."
            found += [s for s in sections(below, key, f"`{key[:-1]}`") if s[1] not in {f[1] for f in found}]
    return found


def inner(annotation: Any) -> type[Tree] | None:
    """The tree of settings that an annotation holds, if any."""
    if isinstance(annotation, type) and issubclass(annotation, Tree):
        return annotation
    return next((found for a in get_args(annotation) if (found := inner(a)) is not None), None)


def many(annotation: Any) -> str:
    """`[]` for a list of trees, `.NAME` for a dictionary of them."""
    return {list: "[]", dict: ".NAME"}.get(get_origin(annotation) or type(None), "")


def takes(field: Any) -> str:
    """A field's type and bounds, as people say them."""
    text = kind(field.annotation)
    for rule in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(rule, name, None) is not None:
                text += f" {sign} {getattr(rule, name)}"
    return text


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        some = [kind(a) for a in args if a is not type(None)]
        return " or ".join(some) + (" or null" if type(None) in args else "")
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is list:
        return f"list of {kind(args[0])}"
    if origin is dict:
        return f"name: {kind(args[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    return f"[settings](#{anchor(annotation)})" if inner(annotation) else str(annotation)


def anchor(model: type[Tree]) -> str:
    """The anchor of a tree's section."""
    title = next(title for title, found, _ in sections(Settings, "", "The run") if found is model)
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def value(default: Any) -> str:
    """A default as YAML would have it."""
    if default is None or default == "" or default == [] or default == {}:
        return "empty" if default is not None else "null"
    return (
        "its own"
        if isinstance(default, Tree)
        else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    )


def commands_page() -> str:
    """Every command with its options and an example, the exit codes, and every deployment."""
    out = [
        NOTE,
        "# Commands",
        "",
        "`pahi COMMAND --help` shows the same in the terminal. With `--json` a command prints its result as JSON on",
        "standard output and nothing else; `-v` shows log lines, and the traceback of an error.",
        "",
        EXIT_CODES,
        "A mistake is one line on standard error.",
        "",
    ]
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)
        out += [f"## {name}", "", command.help or "", "", f"    pahi {name} {usage}".rstrip() + " [OPTIONS]"]
        out.append(f"    {command.epilog.removeprefix('Example: ')}")
        out += ["", "| option | default | meaning |", "|---|---|---|"]
        for p in command.params:
            shown = p.name.upper() if p in arguments else ", ".join(f"`{o}`" for o in p.opts)
            default = p.default if p.default not in (None, False, (), []) and not callable(p.default) else ""
            default = "" if repr(default).startswith("Sentinel") else default
            metavar = f" {p.metavar}" if p.metavar and p not in arguments else ""
            out.append(f"| {shown}{metavar} | {f'`{default}`' if default != '' else ''} | {cell(p.help or '')} |")
        out.append("")
    out += [
        "## Deployments",
        "",
        "What `prefect deploy --all` makes of `prefect.yaml`; all take the settings as their parameter `settings`.",
        "",
        "| deployment | what it does | schedule |",
        "|---|---|---|",
    ]
    for deployment in yaml.safe_load((HERE.parent / "prefect.yaml").read_text())["deployments"]:
        schedules = [
            f"`{s.get('cron') or s.get('interval') or s.get('rrule')}`" + ("" if s.get("active", True) else ", off")
            for s in deployment.get("schedules") or []
        ]
        about = cell(deployment.get("description", ""))
        out.append(f"| `pahi/{deployment['name']}` | {about} | {'; '.join(schedules)} |")
    return "\n".join(out).rstrip() + "\n"


def cell(text: str) -> str:
    """Text that stays inside one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {"settings.md": settings_page, "commands.md": commands_page}


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        file, text = HERE / name, page()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
                print(f"wrote docs/{name}")
    if check and stale:
        print(f"docs/{', docs/'.join(stale)}: not as the code is; run python docs/generate.py", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
