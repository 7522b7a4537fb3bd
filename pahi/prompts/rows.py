"""One row of a source, as it was found."""

import json
import math
import re
from typing import Any, NamedTuple

# What undecodable bytes become on reading (errors="surrogateescape"), and what a lone \ud83d in JSON means.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")

NOT_UTF8 = "not utf-8"
NOT_JSON = "not JSON"
NO_TEXT = "no text"
EMPTY = "empty"
NO_MATCH = "does not match the source's pattern"
LONG_LINE = "a line of more than 32 Mi characters"


class Row(NamedTuple):
    """A prompt before cleaning. `error` says why it cannot be used: not utf-8, not JSON, no text, empty, ..."""

    row: int  # counted from 1, the header not counted
    text: str | None
    kind: str | None = None
    group: str | None = None
    split: str | None = None
    error: str | None = None


def make_row(
    number: int, text: Any, kind: Any = None, group: Any = None, split: Any = None, error: str | None = None
) -> Row:
    """A `Row` of values as a reader found them. What is not UTF-8 in them is replaced by U+FFFD."""
    readable = None
    if isinstance(text, bytes):  # Parquet's strings, undecoded
        text = text.decode("utf-8", "surrogateescape")
    if isinstance(text, str):
        readable = utf8(text)
        error = error or (NOT_UTF8 if readable != text else EMPTY if not text.strip() else None)
    else:
        error = error or NO_TEXT
    if kind is None and group is None and split is None:
        return Row(number, readable, error=error)
    return Row(number, readable, _label(kind), _label(group), _label(split), error)


def utf8(text: str) -> str:
    """The text with every surrogate replaced, so that it can be written."""
    return text if text.isascii() else _NOT_UTF8.sub("\ufffd", text)


def _label(value: Any) -> str | None:
    """A category, group or split as text; None where there is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return utf8(value).strip() or None
