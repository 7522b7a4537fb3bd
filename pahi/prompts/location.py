"""Where a source's bytes lie, and how they are opened."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from pahi.errors import UserError

TEXT_FORMATS = ("txt", "csv", "tsv", "json", "jsonl")
FORMATS = (*TEXT_FORMATS, "parquet")
HEAD = 65_536  # bytes looked at to tell text from something else


def shown(path: str) -> str:
    """The path as messages name it: without the query or user of a URL, since both can carry credentials."""
    if "://" not in path:
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def base_name(path: str) -> str:
    """The last part of a path or URL: `prompts.csv.gz`."""
    return shown(path.split("::")[0]).rstrip("/").rpartition("/")[2]


def file_format(path: str) -> str:
    """One of FORMATS, by suffix; `.gz` counts as its inner suffix. Raises UserError on any other."""
    stem = base_name(path).lower()
    suffix = stem.removesuffix(".gz").rpartition(".")[2] if "." in stem else ""
    if suffix not in (TEXT_FORMATS if stem.endswith(".gz") else FORMATS):
        raise UserError(
            f"{shown(path)}: unknown kind of file; known are {', '.join(FORMATS)}, and .gz of all but parquet"
        )
    return suffix


@contextmanager
def open_bytes(path: str) -> Iterator[Any]:
    """The file as it is stored, binary. Raises UserError, in one line, where it is missing or cannot be read."""
    name = shown(path)
    remote = "://" in path or "::" in path
    try:
        with _open_remote(path) if remote else open(_local(path), "rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a directory; name the file in it") from None
    except PermissionError:
        raise UserError(f"{name}: no permission to read it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name}: damaged gzip file ({error})") from None
    except OSError as error:
        # A store that does not answer is no mistake of the user's, and a later try may succeed.
        if remote:
            raise
        raise UserError(f"{name}: cannot be read: {error.strerror or ' '.join(str(error).split())}") from None


@contextmanager
def open_content(path: str) -> Iterator[io.BufferedReader]:
    """The content of a text file, decompressed. Raises UserError where it is empty or binary."""
    with open_bytes(path) as file:
        raw = gzip.GzipFile(fileobj=file) if base_name(path).lower().endswith(".gz") else file
        content = io.BufferedReader(raw, HEAD)
        head = content.peek(HEAD)
        if not head:
            raise UserError(f"{shown(path)}: is empty")
        if b"\0" in head:
            raise UserError(f"{shown(path)}: is binary (or UTF-16), not text; save it as UTF-8")
        yield content


def _local(path: str) -> str:
    if not path.startswith("pkg:"):
        return os.path.expanduser(path)
    package, _, rest = path[4:].partition("/")
    try:
        return str(resources.files(package).joinpath(rest))
    except (ModuleNotFoundError, ValueError):
        raise UserError(f"{path}: there is no package {package!r}") from None


def _open_remote(path: str) -> Any:
    import fsspec

    try:
        return fsspec.open(path, "rb")
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).replace(path, shown(path)).split())
        raise UserError(f"{shown(path)}: cannot be opened: {reason}") from None
