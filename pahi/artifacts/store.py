"""One place to keep things: a folder, an S3 prefix, or memory, all over fsspec.

Nothing torn is ever visible at a final key. On a local disk an object is written under a temporary name, synced and
linked to its key; on S3 a PUT is atomic by itself.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pahi.errors import PahiError, UserError, missing

TEMPORARY = ".tmp-"
Names = list[str]  # inside Store, `list` is its method


class Store:
    """Objects under one root, named by keys such as `demo/ingest/1f2e.../manifest.json`."""

    def __init__(self, root: str) -> None:
        """Opens `root`: a path, or any fsspec URL. Raises UserError when its kind is unknown."""
        self.root = root
        try:
            self.fs, self.base = fsspec.core.url_to_fs(root, use_listings_cache=False)
        except TypeError:  # a file system that has no such option
            self.fs, self.base = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open the store {root!r}: {error}{missing(error)}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.base = self.base.rstrip("/")

    def path(self, key: str) -> str:
        """The file system's own name of a key."""
        return f"{self.base}/{key}" if self.base else key

    def url(self, key: str) -> str:
        """A key as people and other programs spell it."""
        return self.path(key) if self.local else self.fs.unstrip_protocol(self.path(key))

    def exists(self, key: str) -> bool:
        with self._explained("read", key):
            return self.fs.exists(self.path(key))

    def read(self, key: str) -> bytes:
        """An object's bytes. Raises FileNotFoundError where there is none."""
        with self._explained("read", key):
            return self.fs.cat_file(self.path(key))

    def read_or_none(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes) -> bool:
        """Puts an object where none is, in one operation. False, and nothing changed, where there is one already."""
        with self._explained("write", key):
            if self.local:
                with self._temporary(key, data) as temporary:
                    try:
                        os.link(temporary, self.path(key))
                    except FileExistsError:
                        return False
                    except OSError as error:
                        # File systems without hard links (FAT, some network disks).
                        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                            raise
                        if os.path.exists(self.path(key)):
                            return False
                        os.replace(temporary, self.path(key))
                    _sync_folder(self.path(key))
                return True
            try:
                self.fs.pipe_file(self.path(key), data, mode="create")
            except FileExistsError:
                return False
            return True

    def create_from(self, key: str, file: Path) -> bool:
        """As `create`, from a file of any size."""
        with self._explained("write", key):
            if self.exists(key):
                return False
            if not self.local:
                try:
                    self.fs.put_file(str(file), self.path(key), mode="create")
                except FileExistsError:
                    return False
                return True
            with self._temporary(key, file) as temporary:
                os.replace(temporary, self.path(key))
                _sync_folder(self.path(key))
            return True

    def read_to(self, key: str, file: Path) -> None:
        """Copies an object of any size to a local file. Raises FileNotFoundError where there is none."""
        with self._explained("read", key):
            self.fs.get_file(self.path(key), str(file))

    def replace(self, key: str, data: bytes) -> None:
        """Puts an object, over any that is there: for what no manifest refers to (run.json, training state)."""
        with self._explained("write", key):
            if self.local:
                with self._temporary(key, data) as temporary:
                    os.replace(temporary, self.path(key))
                    _sync_folder(self.path(key))
            else:
                self.fs.pipe_file(self.path(key), data)

    def list(self, prefix: str) -> Names:
        """Every key below a prefix, sorted; temporary files are not objects."""
        with self._explained("list", prefix):
            try:
                found = self.fs.find(self.path(prefix))
            except FileNotFoundError:
                return []
        start = len(self.base) + 1 if self.base else 0
        return sorted(name[start:] for name in found if TEMPORARY not in name.rsplit("/", 1)[-1])

    def children(self, prefix: str) -> Names:
        """The names directly below a prefix, sorted."""
        with self._explained("list", prefix):
            try:
                found = self.fs.ls(self.path(prefix), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = {name.rstrip("/").rsplit("/", 1)[-1] for name in found}
        return sorted(name for name in names if name and not name.startswith(TEMPORARY))

    def delete(self, prefix: str) -> None:
        """Removes an object, or everything below a prefix."""
        with self._explained("delete", prefix), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(prefix), recursive=True)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes | Path) -> Iterator[str]:
        """A synced file beside the key's place, of these bytes or of another file's; gone afterwards."""
        path = Path(self.path(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with temporary.open("wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield str(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self, verb: str, key: str) -> Iterator[None]:
        """Turns a store's refusal into one line; what is simply not there stays FileNotFoundError."""
        try:
            yield
        except PahiError:
            raise
        except FileNotFoundError as error:
            if verb == "write":
                raise UserError(
                    f"cannot write {self.url(key)}: {_reason(error)}; check that the bucket exists"
                ) from None
            raise
        except OSError as error:
            hint = {
                errno.ENOSPC: "free some space or choose another --root, then run again: finished work is kept",
                errno.EDQUOT: "free some space or choose another --root, then run again: finished work is kept",
                errno.EROFS: "choose a --root that can be written",
                errno.EACCES: "check its permissions or choose another --root",
                errno.EPERM: "check its permissions or choose another --root",
            }.get(error.errno or 0, "check --root and the credentials in the environment")
            raise UserError(f"cannot {verb} {self.url(key)}: {_reason(error)}; {hint}") from error
        except Exception as error:
            # botocore's and aiohttp's own classes: no credentials, no such endpoint, a refused signature.
            if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
                raise
            raise UserError(
                f"cannot {verb} {self.url(key)}: {_reason(error)}; check --root and the credentials in the environment"
            ) from error


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
