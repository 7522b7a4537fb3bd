"""Which column of a source is what."""

from collections.abc import Sequence
from dataclasses import dataclass

from pahi.errors import UserError
from pahi.prompts.location import shown
from pahi.settings import Source

TEXT_NAMES = ("prompt", "text", "caption", "prompts", "description")
KIND_NAMES = ("kind", "category", "tag")


@dataclass(frozen=True)
class Columns:
    """Index of each column among the source's; None where it has none."""

    text: int | None = None
    kind: int | None = None
    group: int | None = None
    split: int | None = None


def find_columns(names: Sequence[str], source: Source, need_text: bool = True) -> Columns:
    """Where text, kind, group and split are among `names`, upper and lower case being equal.

    Raises UserError where a column that the source names is missing, where two have that name, and, if `need_text`,
    where none looks like the prompts.
    """
    text = _named(names, source, "text") if source.text else _usual(names, source, TEXT_NAMES)
    if text is None and need_text:
        raise UserError(
            f"{shown(source.path)}: none of its columns ({_list(names)}) is called {', '.join(TEXT_NAMES)}; "
            "name it as the source's text: --set 'ingest.sources=[{path: FILE, text: COLUMN}]'"
        )
    kind = _named(names, source, "kind") if source.kind else _usual(names, source, KIND_NAMES)
    group = _named(names, source, "group") if source.group else None
    split = _named(names, source, "split") if source.split else None
    return Columns(text, kind, group, split)


def _named(names: Sequence[str], source: Source, role: str) -> int:
    wanted = getattr(source, role)
    found = [i for i, name in enumerate(names) if name == wanted]
    found = found or [i for i, name in enumerate(names) if _plain(name) == _plain(wanted)]
    if not found:
        raise UserError(
            f"{shown(source.path)}: has no column {wanted!r}, which the source names as its {role}; "
            f"it has {_list(names) or 'none'}"
        )
    return _only(found, names, source)


def _usual(names: Sequence[str], source: Source, usual: Sequence[str]) -> int | None:
    for wanted in usual:
        found = [i for i, name in enumerate(names) if _plain(name) == wanted]
        if found:
            return _only(found, names, source)
    return None


def _only(found: list[int], names: Sequence[str], source: Source) -> int:
    # Either could be the prompts; to take the first would lose the other without a word.
    if len(found) > 1:
        raise UserError(f"{shown(source.path)}: has {len(found)} columns called {names[found[0]]!r}; rename one")
    return found[0]


def _plain(name: str) -> str:
    return name.strip().casefold()


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")
