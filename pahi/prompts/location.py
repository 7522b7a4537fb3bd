"""Where a source's bytes lie, and how they are opened."""

import bz2
import glob
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from pahi.errors import UserError, first_line
from pahi.settings import Source

TEXT_FORMATS = ("txt", "csv", "tsv", "json", "jsonl")
FORMATS = (*TEXT_FORMATS, "parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
HEAD = 65_536  # bytes looked at to tell text from something else
FREE = 64 << 20  # decompressed bytes before the ratio to the compressed ones counts


def shown(path: str) -> str:
    """The path as messages name it: without the query or user of a URL, since both can carry credentials."""
    if "://" not in path:
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def base_name(path: str) -> str:
    """The last part of a path or URL: `prompts.csv.gz`."""
    return shown(path.split("::")[0]).rstrip("/").rpartition("/")[2]


def stem(path: str) -> str:
    """The base name without the suffix of its compression: `prompts.csv`."""
    base = base_name(path)
    return base.rpartition(".")[0] if base.lower().endswith(COMPRESSED) else base


def file_format(source: Source) -> str:
    """One of FORMATS: the source's own, or by suffix, that of a compression not counted. Raises UserError on others."""
    name = stem(source.path).lower()
    suffix = source.format or (name.rpartition(".")[2] if "." in name else "")
    if suffix not in (TEXT_FORMATS if name != base_name(source.path).lower() else FORMATS):
        raise UserError(
            f"{shown(source.path)}: unknown kind of file; known are {', '.join(FORMATS)}, and {', '.join(COMPRESSED)} "
            "of all but parquet; name another as the source's format"
        )
    return suffix


def expand(source: Source) -> list[Source]:
    """The source, or one for each file that its path's pattern (`*`, `?`, `[...]`) matches, in the order of names.

    Raises UserError where nothing matches.
    """
    path = source.path
    if path.startswith(("pkg:", "hub:")) or not glob.has_magic(path.partition("://")[2] or path):
        return [source]
    if "://" in path:
        if path.startswith(("http://", "https://")):  # a `?` there begins the query
            return [source]
        fs, inner = _filesystem(path)
        found = [fs.unstrip_protocol(match) for match in fs.glob(inner)]
    else:
        # A file whose very name has such a character is that file.
        if os.path.exists(_local(path)):
            return [source]
        found = [match for match in glob.glob(_local(path), recursive=True) if os.path.isfile(match)]
    if not found:
        raise UserError(f"{shown(path)}: no file matches")
    return [
        source.model_copy(update={"path": match, "name": f"{source.name}/{base_name(match)}" if source.name else ""})
        for match in sorted(found)
    ]


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
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{name}: damaged compressed file ({first_line(error)})") from None
    except OSError as error:
        # A store that does not answer is no mistake of the user's, and a later try may succeed.
        if remote:
            raise
        raise UserError(f"{name}: cannot be read: {error.strerror or ' '.join(str(error).split())}") from None


@contextmanager
def open_content(source: Source, max_expansion: int = 200) -> Iterator[io.BufferedReader]:
    """The content of a text file, decompressed. Raises UserError where it is empty, binary or a decompression bomb."""
    name = shown(source.path)
    with open_bytes(source.path) as file:
        raw = file
        if base_name(source.path).lower().endswith(COMPRESSED):
            counted = _Counted(file)
            inner = _decompressed(io.BufferedReader(counted), base_name(source.path).lower(), name)
            raw = _Bounded(inner, counted, max_expansion, name)
        content = io.BufferedReader(raw, HEAD)
        head = content.peek(HEAD)
        if not head:
            raise UserError(f"{name}: is empty")
        if b"\0" in head and not source.encoding.startswith(("utf-16", "utf-32")):
            raise UserError(f"{name}: is binary (or UTF-16), not text; save it as UTF-8, or name the source's encoding")
        yield content


class _Counted(io.RawIOBase):
    """Counts the bytes that are read through it."""

    def __init__(self, file: Any) -> None:
        self.file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Bounded(_Counted):
    """A decompressed stream that ends in an error where it grows out of all proportion."""

    def __init__(self, inner: Any, compressed: _Counted, most: int, name: str) -> None:
        super().__init__(inner)
        self.compressed, self.most, self.name = compressed, most, name

    def readinto(self, buffer: Any) -> int:
        read = super().readinto(buffer)
        if self.count > FREE and self.count > self.most * self.compressed.count:
            raise UserError(
                f"{self.name}: holds more than {self.most} times its own size, as a decompression bomb does; "
                "where that is right, raise ingest.max_expansion"
            )
        return read


def _decompressed(file: io.BufferedReader, base: str, name: str) -> Any:
    if base.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if base.endswith(".bz2"):
        return bz2.BZ2File(file)
    if base.endswith(".xz"):
        return lzma.LZMAFile(file)
    import pyarrow as pa

    return pa.input_stream(pa.PythonFile(file, mode="r"), compression="zstd")


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
        raise _unopened(path, error) from None


def _filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise _unopened(path, error) from None


def _unopened(path: str, error: Exception) -> UserError:
    reason = " ".join(str(error).replace(path, shown(path)).split())
    return UserError(f"{shown(path)}: cannot be opened: {reason}")
