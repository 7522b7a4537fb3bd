"""Prompts as their files have them, whatever the format, and what a file's content hashes to."""

import hashlib
from collections.abc import Iterator
from itertools import islice

from pahi.artifacts.fingerprint import content_hash
from pahi.prompts.formats import read_delimited, read_json, read_jsonl, read_parquet, read_txt
from pahi.prompts.location import base_name, file_format, open_bytes
from pahi.prompts.rows import Row
from pahi.settings import Source


def read_source(source: Source) -> Iterator[Row]:
    """Every row of a source, at most `source.limit` of them, in the file's order.

    The format follows from the suffix: txt (a prompt a line), csv, tsv, json (an array), jsonl, parquet; .gz of all but
    parquet. A row that cannot be used comes with its `error`. Raises UserError, in one line, where the file is missing,
    empty or unreadable, where a column is missing, or where a record of a CSV or TSV does not fit its header.
    """
    style = file_format(_checked(source.path))
    if style in ("csv", "tsv"):
        rows = read_delimited(source, style)
    else:
        rows = {"txt": read_txt, "json": read_json, "jsonl": read_jsonl, "parquet": read_parquet}[style](source)
    return islice(rows, source.limit)


def source_hash(source: Source) -> str:
    """sha256 over what decides its rows: the file's bytes, format, columns and limit; not where it lies."""
    style = file_format(_checked(source.path))
    digest = hashlib.sha256()
    with open_bytes(source.path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    columns = {"text": source.text, "kind": source.kind, "group": source.group, "split": source.split}
    return content_hash({"bytes": digest.hexdigest(), "format": style, "columns": columns, "limit": source.limit})


def source_name(source: Source) -> str:
    """How the artifacts call it: its name, or the file's stem (`prompts` of `prompts.csv.gz`)."""
    if source.name:
        return source.name
    base = base_name(source.path)
    return (base[:-3] if base.lower().endswith(".gz") else base).rpartition(".")[0] or base


def _checked(path: str) -> str:
    """The path. Raises UserError where it is a local folder, whose missing suffix would be the lesser complaint."""
    if "://" not in path and "." not in base_name(path):
        with open_bytes(path):
            pass
    return path
