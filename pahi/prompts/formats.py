"""One reader a format: rows in, `Row`s out, and no text lost in between.

A reader raises UserError for what only a person can mend (a record whose fields do not add up), and yields a `Row` with
an error for what concerns that row alone.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pahi.errors import UserError
from pahi.prompts.columns import Columns, find_columns
from pahi.prompts.location import open_bytes, open_content, shown
from pahi.prompts.rows import EMPTY, LONG_LINE, NO_MATCH, NOT_JSON, NOT_UTF8, Row, make_row, utf8
from pahi.settings import Source

MAX_LINE = 32 << 20  # characters; what has longer lines is no list of prompts
KEPT_OF_LINE = 2000

MENDING = {
    "csv": 'quote every field that holds a comma, a quote or a line break, and double the quotes in it ("a ""b"", c")',
    "tsv": "a field of a TSV cannot hold a tab or a line break: put spaces there",
}


def read_txt(source: Source, max_expansion: int = 200) -> Iterator[Row]:
    """One prompt a line, or what the source's pattern finds in it."""
    pattern = re.compile(source.pattern) if source.pattern else None
    names = list(pattern.groupindex) if pattern else []
    columns = find_columns(names, source, need_text=bool(pattern))  # without a pattern, no column can be there
    empty = True
    with open_content(source, max_expansion) as file:
        for number, (line, cut) in enumerate(_lines(file, source), start=1):
            if cut or not pattern or not line.strip():
                row = make_row(number, line, error=LONG_LINE if cut else None)
            elif (match := pattern.search(line)) is None:
                row = make_row(number, utf8(line), error=NO_MATCH)
            else:
                row = _pick(number, [match[name] for name in names], columns)
            empty = empty and row.error == EMPTY
            yield row
    if empty:
        raise UserError(f"{shown(source.path)}: is empty")


def read_delimited(source: Source, style: str, max_expansion: int = 200) -> Iterator[Row]:
    """CSV, strictly; TSV, where a quote is a character like any other. Raises UserError, with the line, on misfits."""
    name = shown(source.path)
    with open_content(source, max_expansion) as file:
        bad = False

        def lines() -> Iterator[str]:
            nonlocal bad
            for number, (line, cut) in enumerate(_lines(file, source, ""), start=1):
                if cut:
                    raise UserError(f"{name}, line {number}: {LONG_LINE}; is a quote never closed?")
                bad = bad or utf8(line) != line
                yield line

        csv.field_size_limit(MAX_LINE)  # the process's; only ever raised
        if style == "csv":
            reader = csv.reader(lines(), strict=True)
        else:
            reader = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        header: list[str] = []
        columns = Columns()
        number = 0
        while True:
            start, bad = reader.line_num + 1, False
            try:
                record = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                reason = "a quote is never closed" if "unexpected end" in str(error) else str(error)
                raise UserError(f"{name}, line {start}: {reason}; {MENDING[style]}") from None
            blank = len(record) < 2 and not "".join(record).strip()
            if not header:
                if not blank:
                    header = [utf8(cell) for cell in record]
                    columns = find_columns(header, source)
                continue
            number += 1
            if blank:
                yield make_row(number, "", error=NOT_UTF8 if bad else None)
                continue
            if len(record) != len(header):
                raise UserError(f"{name}, line {start}, {_misfit(record, header)}; {MENDING[style]}")
            yield _pick(number, record, columns, NOT_UTF8 if bad else None)
    if not number:
        raise UserError(f"{name}: has a header and no rows" if header else f"{name}: is empty")


def _misfit(record: list[str], header: list[str]) -> str:
    count = f"{len(record)} fields where the header has {len(header)}"
    if len(record) < len(header):
        return f"column {len(record) + 1}: {count}, so that {header[len(record)]!r} is missing"
    extra = utf8(record[len(header)])
    return f"column {len(header) + 1}: {count}; the first too many is {extra[:40]!r}"


def read_json(source: Source, max_expansion: int = 200) -> Iterator[Row]:
    """One array of strings or of objects."""
    name = shown(source.path)
    with open_content(source, max_expansion) as file:
        data = file.read().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise UserError(f"{name}: is empty")
    try:
        values = json.loads(data.decode(source.encoding), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}, line {line}: not {source.encoding}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        hint = "; one value a line is .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{name}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON that can be read: {error}") from None
    if not isinstance(values, list):
        raise UserError(f"{name}: expected an array of strings or objects; one object a line is .jsonl")
    if not values:
        raise UserError(f"{name}: is an empty array")
    limited = values[: source.limit]
    keys = _keys(((value, None) for value in limited), source)
    for number, value in enumerate(limited, start=1):
        yield _from_json(number, value, keys)


def read_jsonl(source: Source, max_expansion: int = 200) -> Iterator[Row]:
    """One object or string a line."""

    def lines() -> Iterator[tuple[str, bool]]:
        with open_content(source, max_expansion) as file:
            for line, cut in islice(_lines(file, source), source.limit):
                yield line.strip(), cut

    # Which columns there are is known at the end only, as any object may have a key that the others lack. So the file
    # is read twice, and may be larger than memory.
    keys = _keys((_parse(*line) for line in lines() if line[0]), source)
    for number, (line, cut) in enumerate(lines(), start=1):
        value, error = _parse(line, cut) if line else ("", None)
        yield make_row(number, utf8(line), error=error) if error else _from_json(number, value, keys)


def read_parquet(source: Source, max_expansion: int = 200) -> Iterator[Row]:
    """Only the columns that are needed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = shown(source.path)
    with open_bytes(source.path) as file:
        try:
            parquet = pq.ParquetFile(file)
            columns = find_columns(parquet.schema_arrow.names, source)
            if not parquet.metadata.num_rows:
                raise UserError(f"{name}: has no rows")
            wanted = {i: parquet.schema_arrow.names[i] for i in vars(columns).values() if i is not None}
            number = 0
            for batch in parquet.iter_batches(10_000, columns=list(wanted.values())):
                values = {i: _values(batch.column(column)) for i, column in wanted.items()}
                for index in range(batch.num_rows):
                    number += 1
                    yield _pick(number, {i: column[index] for i, column in values.items()}, columns)
        except (pa.ArrowException, pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and error.errno is not None:
                raise  # the disk's or the network's, not the file's
            reason = " ".join(str(error).split()).replace(source.path, name)
            raise UserError(f"{name}: not a Parquet file that can be read: {reason}") from None


def _lines(file: io.BufferedReader, source: Source, newline: str | None = None) -> Iterator[tuple[str, bool]]:
    """Lines of text, without their ends where `newline` is None, and whether each was cut for its length.

    Bytes that are not UTF-8 come as surrogates; in another encoding they end in a UserError.
    """
    utf_8 = source.encoding == "utf-8"
    encoding = "utf-8-sig" if utf_8 else source.encoding
    text = io.TextIOWrapper(file, encoding, errors="surrogateescape" if utf_8 else "strict", newline=newline)
    number = 0
    try:
        while line := text.readline(MAX_LINE):
            number += 1
            cut = len(line) == MAX_LINE and not line.endswith("\n")
            if cut:
                line = line[:KEPT_OF_LINE]
                while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                    pass
            yield line.removesuffix("\n") if newline is None else line, cut
    except UnicodeError:
        # What was decoded ahead may have held the fault, so this is the first line that it can be in.
        raise UserError(
            f"{shown(source.path)}, line {number + 1} or later: not {source.encoding}; name the right encoding"
        ) from None


def _pick(number: int, record: Any, columns: Columns, error: str | None = None) -> Row:
    if columns.kind is columns.group is columns.split is None and columns.text is not None:  # of most sources
        return make_row(number, record[columns.text], error=error)
    text, kind, group, split = (
        None if i is None else record[i] for i in (columns.text, columns.kind, columns.group, columns.split)
    )
    return make_row(number, text, kind, group, split, error)


def _parse(line: str, cut: bool = False) -> tuple[Any, str | None]:
    """(value, error) of a line."""
    if cut:
        return None, LONG_LINE
    if utf8(line) != line:
        return None, NOT_UTF8
    try:
        return json.loads(line, object_pairs_hook=_object), None
    except _KeyTwice as error:
        return None, str(error)
    except (ValueError, RecursionError):
        return None, NOT_JSON


class _KeyTwice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Python would keep the last of two equal keys, and lose the other without a word."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _KeyTwice(f"key {utf8(next(name for name in names if names.count(name) > 1))[:80]!r} twice in an object")
    return found


def _keys(parsed: Iterable[tuple[Any, str | None]], source: Source) -> dict[str, str]:
    """Key of each role, over all objects; empty where all rows are bare strings. `parsed` are (value, error)."""
    names: dict[str, None] = {}
    rows = found = objects = 0
    for value, error in parsed:
        rows += 1
        if error:
            continue
        found += 1
        if isinstance(value, dict):
            objects += 1
            names.update(dict.fromkeys(value))
    if not rows:
        raise UserError(f"{shown(source.path)}: is empty")
    if not found:
        raise UserError(f"{shown(source.path)}: no line of it is JSON; an array over many lines is .json")
    listed = list(names)
    columns = find_columns(listed, source, need_text=bool(objects))
    return {role: listed[i] for role, i in vars(columns).items() if i is not None}


def _from_json(number: int, value: Any, keys: dict[str, str]) -> Row:
    if isinstance(value, dict):
        return make_row(number, **{"text": None, **{role: value.get(key) for role, key in keys.items()}})
    return make_row(number, value if isinstance(value, str) else None)


def _values(column: Any) -> list[Any]:
    """A Parquet column as Python values; strings as bytes, since Parquet does not promise that they are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()
