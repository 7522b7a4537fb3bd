"""Rows to prompts: cleaned, unique, split. Every row comes out once, as a prompt or with the reason why not."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from pahi.errors import UserError
from pahi.prompts.cleaning import clean, prompt_id
from pahi.prompts.rows import EMPTY, NO_TEXT, Row
from pahi.settings import Ingest

SPLITS = ("train", "validation", "test")
REJECTED_CHARACTERS = 2000  # kept of a rejected row's text
RAW_FACTOR = 10  # raw text may be this much longer than cleaned, by entities and white space


def ingest_rows(
    source_rows: Iterable[tuple[str, Row]], settings: Ingest, known: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(source name, row) pairs -> rows of `schemas.PROMPTS` and of `schemas.REJECTS`, as many in all as came in.

    known: prompt_id -> split of what earlier partitions hold. The first of equal prompts is kept, so sources come in
    order of precedence. Reasons: empty, unreadable, too_long, duplicate (detail: source:row of the first), known.
    Raises UserError where the fractions leave nothing to train on.
    """
    if settings.validation_fraction + settings.test_fraction >= 1:
        raise UserError("ingest.validation_fraction and ingest.test_fraction leave no prompt to train on")
    prompts: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    first: dict[str, str] = {}  # prompt_id -> source:row
    for source, row in source_rows:
        prompt = _prompt(source, row, settings)
        if isinstance(prompt, dict):
            identity = prompt["prompt_id"]
            if identity in known:
                prompt = "known", f"{identity} is in an earlier partition's {known[identity]} split"
            elif identity in first:
                prompt = "duplicate", first[identity]
            else:
                first[identity] = f"{source}:{row.row}"
                prompts.append(prompt)
                continue
        reason, detail = prompt
        text = None if row.text is None else row.text[:REJECTED_CHARACTERS]
        rejects.append({"source": source, "row": row.row, "text": text, "reason": reason, "detail": detail})
    return prompts, rejects


def split_of(group: str, validation_fraction: float, test_fraction: float) -> str:
    """train, validation or test, by the sha256 of the group alone, so that neither order nor company matters.

    Test takes the low end and validation the high one: to change one fraction moves no group between those two.
    """
    digest = hashlib.sha256(f"split:{group}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64  # in [0, 1]
    if place < test_fraction:
        return "test"
    return "validation" if place >= 1 - validation_fraction and validation_fraction else "train"


def _prompt(source: str, row: Row, settings: Ingest) -> dict[str, Any] | tuple[str, str | None]:
    """A row of `schemas.PROMPTS`, or the reason and detail of its rejection."""
    if row.error == EMPTY:
        return "empty", None
    if row.error or row.text is None:
        return "unreadable", row.error or NO_TEXT
    limit = settings.max_characters
    # Before cleaning, whose time can grow with the square of what someone made up to that end.
    if len(row.text) > RAW_FACTOR * limit:
        return "too_long", f"{len(row.text)} characters before cleaning; at most {limit}"
    text, flags = clean(row.text)
    if not text:
        return "empty", "nothing is left after cleaning"
    if len(text) > limit:
        return "too_long", f"{len(text)} characters; at most {limit}"
    if row.split and row.split not in SPLITS:
        return "unreadable", f"split {row.split!r} is none of {', '.join(SPLITS)}"
    identity = prompt_id(text)
    group = row.group or identity
    return {
        "prompt_id": identity,
        "text": text,
        "original": row.text,
        "source": source,
        "row": row.row,
        "kind": row.kind or None,
        "group": group,
        "split": row.split or split_of(group, settings.validation_fraction, settings.test_fraction),
        "flags": flags,
    }
