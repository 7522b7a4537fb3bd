"""Prompts as their sources have them, whatever the format, and what a source's content hashes to."""

import hashlib
from collections.abc import Iterator
from itertools import islice

from pahi.artifacts.fingerprint import content_hash
from pahi.prompts import hub
from pahi.prompts.formats import read_delimited, read_json, read_jsonl, read_parquet, read_txt
from pahi.prompts.location import base_name, file_format, open_bytes, stem
from pahi.prompts.rows import Row
from pahi.settings import Source


def read_source(source: Source, max_expansion: int = 200) -> Iterator[Row]:
    """Every row of a source, at most `source.limit` of them, in the file's order.

    The format follows from the suffix: txt (a prompt a line), csv, tsv, json (an array), jsonl, parquet; .gz, .bz2, .xz
    and .zst of all but parquet; `hub:` reads a dataset of the Hub as a stream. A row that cannot be used comes with its
    `error`. Raises UserError, in one line, where the file is missing, empty or unreadable, where it decompresses to
    more than `max_expansion` times its size, where a column is missing, or where a record of a CSV or TSV does not fit
    its header.
    """
    if source.path.startswith(hub.PREFIX):
        return islice(hub.read_hub(source), source.limit)
    style = file_format(_checked(source))
    if style in ("csv", "tsv"):
        rows = read_delimited(source, style, max_expansion)
    else:
        readers = {"txt": read_txt, "json": read_json, "jsonl": read_jsonl, "parquet": read_parquet}
        rows = readers[style](source, max_expansion)
    return islice(rows, source.limit)


def source_hash(source: Source) -> str:
    """sha256 over what decides its rows: the file's bytes, format, columns and limit; not where it lies."""
    if source.path.startswith(hub.PREFIX):
        style, found = "hub", hub.content(source)
    else:
        style = file_format(_checked(source))
        digest = hashlib.sha256()
        with open_bytes(source.path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
        found = digest.hexdigest()
    columns = {"text": source.text, "kind": source.kind, "group": source.group, "split": source.split}
    reading = {"encoding": source.encoding, "pattern": source.pattern, "weight": source.weight}
    return content_hash({"bytes": found, "format": style, "columns": columns, "limit": source.limit, **reading})


def source_name(source: Source) -> str:
    """How the artifacts call it: its name, or the file's stem (`prompts` of `prompts.csv.gz`)."""
    if source.name:
        return source.name
    if source.path.startswith(hub.PREFIX):
        return source.path.removeprefix(hub.PREFIX).rstrip("/").rpartition("/")[2]
    return stem(source.path).rpartition(".")[0] or base_name(source.path)


def _checked(source: Source) -> Source:
    """The source. Raises UserError where it is a local folder, whose missing suffix would be the lesser complaint."""
    if "://" not in source.path and "." not in base_name(source.path):
        with open_bytes(source.path):
            pass
    return source
