"""One place to keep things: a folder, an S3 prefix, or memory, all over fsspec.

Nothing torn is ever visible at a final key. On a local disk an object is written under a temporary name, synced and
linked to its key; on S3 a PUT is atomic by itself.
"""

import contextlib
import errno
import logging
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pahi.errors import PahiError, UserError, missing

TEMPORARY = ".tmp-"
Names = list[str]  # inside Store, `list` is its method
Uploads = list[dict[str, Any]]
T = TypeVar("T")

# How long a remote store may be away before a run gives up: PATIENCE once it has answered, and FIRST before, when it
# is more likely that its address is wrong.
PATIENCE, FIRST = 300.0, 10.0
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30  # seconds of silence after which a request is made again
PART = 50 * 2**20  # bytes of a part of an upload to S3; what has less than two is put in one request
AGE = 24 * 3600.0  # seconds after which what a writer left behind is nobody's any more
# What a store says of itself, rather than of the request. s3fs turns codes into these.
TRANSIENT = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED}
TRANSIENT |= {errno.EPIPE, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EAGAIN, getattr(errno, "EREMOTEIO", errno.EIO)}
BROKEN_ON_THE_WAY = {"SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
logger = logging.getLogger(__name__)


class Store:
    """Objects under one root, named by keys such as `demo/ingest/1f2e.../manifest.json`."""

    def __init__(self, root: str) -> None:
        """Opens `root`: a path, or any fsspec URL. Raises UserError when its kind is unknown."""
        self.root = root
        self.patience = PATIENCE
        self._answered = False
        options: dict[str, Any] = {"use_listings_cache": False}
        if root.partition("://")[0] in ("s3", "s3a"):
            # What is tried again, and for how long, is decided in one place: _retried.
            options["config_kwargs"] = {
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": READ_TIMEOUT,
                "retries": {"mode": "standard", "total_max_attempts": 1},
                "max_pool_connections": 32,
            }
        try:
            self.fs, self.base = fsspec.core.url_to_fs(root, **options)
        except TypeError:  # a file system that has no such option
            self.fs, self.base = fsspec.core.url_to_fs(root)
        except (ValueError, ImportError) as error:
            raise UserError(f"cannot open the store {root!r}: {error}{missing(error)}") from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.base = self.base.rstrip("/")
        if hasattr(self.fs, "retries"):
            self.fs.retries = 1

    def path(self, key: str) -> str:
        """The file system's own name of a key."""
        return f"{self.base}/{key}" if self.base else key

    def url(self, key: str) -> str:
        """A key as people and other programs spell it."""
        return self.path(key) if self.local else self.fs.unstrip_protocol(self.path(key))

    def exists(self, key: str) -> bool:
        with self._explained("read", key):
            return self._retried(lambda: self.fs.exists(self.path(key)))

    def read(self, key: str) -> bytes:
        """An object's bytes. Raises FileNotFoundError where there is none."""
        with self._explained("read", key):
            return self._retried(lambda: self.fs.cat_file(self.path(key)))

    def read_many(self, keys: Names) -> list[bytes | None]:
        """As `read_or_none` of each; a remote store is asked for many at once."""
        if self.local or not getattr(self.fs, "async_impl", False):
            return [self.read_or_none(key) for key in keys]
        paths = [self.path(key) for key in keys]
        with self._explained("read", keys[0] if keys else ""):
            found: dict[str, Any] = self._retried(lambda: self.fs.cat(paths, on_error="return")) if paths else {}
        # One that failed is read again by itself, with patience.
        data = [found.get(path) for path in paths]
        return [d if isinstance(d, bytes) else self.read_or_none(k) for d, k in zip(data, keys, strict=True)]

    def read_or_none(self, key: str) -> bytes | None:
        """An object's bytes, or None where there is none."""
        try:
            return self.read(key)
        except FileNotFoundError:
            return None

    def create(self, key: str, data: bytes | memoryview) -> bool:
        """Puts an object where none is, in one operation. False, and nothing changed, where there is one already.

        On a remote store True too where the very same bytes are there: they may be ours, put by a request whose answer
        was lost on the way.
        """
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
            body = bytes(data)  # once, and no copy where it is bytes already
            return self._retried(lambda: self._put(key, body))

    def _put(self, key: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self.path(key), data, mode="create", **self._parts())
        except FileExistsError:
            # The HTTP client itself makes a request again whose answer was lost: what is there may be ours.
            return self.fs.cat_file(self.path(key)) == data
        return True

    def _parts(self) -> dict[str, Any]:
        return {"chunksize": PART} if hasattr(self.fs, "call_s3") else {}

    def create_from(self, key: str, file: Path) -> bool:
        """As `create`, from a file of any size."""
        with self._explained("write", key):
            if self.exists(key):
                return False
            if not self.local:
                try:
                    self._retried(lambda: self.fs.put_file(str(file), self.path(key), mode="create"))
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
            self._retried(lambda: self.fs.get_file(self.path(key), str(file)))

    def replace(self, key: str, data: bytes | memoryview) -> None:
        """Puts an object, over any that is there: for what no manifest refers to (run.json, training state)."""
        with self._explained("write", key):
            if self.local:
                with self._temporary(key, data) as temporary:
                    os.replace(temporary, self.path(key))
                    _sync_folder(self.path(key))
            else:
                body = bytes(data)
                self._retried(lambda: self.fs.pipe_file(self.path(key), body, **self._parts()))

    def list(self, prefix: str) -> Names:
        """Every key below a prefix, sorted; temporary files are not objects."""
        with self._explained("list", prefix):
            try:
                found = self._retried(lambda: self.fs.find(self.path(prefix)))
            except FileNotFoundError:
                return []
        start = len(self.base) + 1 if self.base else 0
        return sorted(name[start:] for name in found if TEMPORARY not in name.rsplit("/", 1)[-1])

    def children(self, prefix: str) -> Names:
        """The names directly below a prefix, sorted."""
        with self._explained("list", prefix):
            try:
                found = self._retried(lambda: self.fs.ls(self.path(prefix), detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = {name.rstrip("/").rsplit("/", 1)[-1] for name in found}
        return sorted(name for name in names if name and not name.startswith(TEMPORARY))

    def delete(self, prefix: str) -> None:
        """Removes an object, or everything below a prefix. Raises UserError where the store refuses to."""
        remove = self._bulk_delete if hasattr(self.fs, "call_s3") else partial(self.fs.rm, recursive=True)
        with self._explained("delete", prefix), contextlib.suppress(FileNotFoundError):
            self._retried(lambda: remove(self.path(prefix)))

    def _bulk_delete(self, path: str) -> None:
        """S3 answers a bulk delete with 200 and names what it refused in the body, which s3fs passes over."""
        bucket = path.partition("/")[0]
        keys = [name.partition("/")[2] for name in self.fs.find(path)]
        for start in range(0, len(keys), 1000):
            objects = {"Objects": [{"Key": key} for key in keys[start : start + 1000]], "Quiet": True}
            refused = self.fs.call_s3("delete_objects", Bucket=bucket, Delete=objects).get("Errors") or []
            refused = [entry for entry in refused if not self._deleted_alone(bucket, entry["Key"])]
            if refused:
                first, for_good = refused[0], refused[0].get("Code") in ("AccessDenied", "InvalidObjectState")
                reason = f"{len(refused)} objects, the first s3://{bucket}/{first['Key']}: {first.get('Message')}"
                # Anything but a refusal for good is asked for again, together with what is left.
                raise PermissionError(errno.EACCES, reason) if for_good else OSError(errno.EBUSY, reason)

    def _deleted_alone(self, bucket: str, key: str) -> bool:
        """Some stores allow single deletes only."""
        try:
            self.fs.call_s3("delete_object", Bucket=bucket, Key=key)
        except OSError:
            return False
        return True

    # ----------------------------------------------------------------------------------------------------- leftovers

    def leftovers(self, age: float = AGE) -> Names:
        """What killed writers left behind more than `age` seconds ago, as people read it.

        Temporary files of a folder; on S3, multipart uploads that were never completed.
        """
        return [what for what, _ in self._leftovers(age)]

    def clean(self, age: float = AGE) -> Names:
        """Removes what `leftovers` lists; returns it."""
        found = self._leftovers(age)
        for _, remove in found:
            remove()
        return [what for what, _ in found]

    def _leftovers(self, age: float) -> "Found":
        found: Found = []
        if self.local:
            for path in sorted(Path(self.base).rglob(f"{TEMPORARY}*")):
                with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                    if path.is_file() and time.time() - path.stat().st_mtime > age:
                        found.append((str(path), lambda path=path: path.unlink(missing_ok=True)))  # type: ignore[misc]
        elif hasattr(self.fs, "call_s3"):
            bucket, _, prefix = self.path("").partition("/")
            with self._explained("list", ""):
                uploads = self._retried(lambda: self._uploads(bucket, prefix))
            for upload in uploads:
                if (datetime.now(UTC) - upload["Initiated"]).total_seconds() > age:
                    one = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    remove = lambda one=one: self.fs.call_s3("abort_multipart_upload", **one)  # noqa: E731
                    found.append((f"unfinished upload of s3://{bucket}/{upload['Key']}", remove))
        return found

    def _uploads(self, bucket: str, prefix: str) -> Uploads:
        """Every multipart upload that was begun and neither completed nor given up."""
        found, marker = [], dict[str, str]()
        while True:
            page = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
            found += page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return found
            marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    # ----------------------------------------------------------------------------------------------------- internals

    def _retried(self, call: Callable[[], T]) -> T:
        """Calls again, with growing and random pauses, while a remote store refuses service, is silent or away."""
        started, attempt = time.monotonic(), 0
        while True:
            try:
                result = call()
                self._answered = True
                return result
            except Exception as error:
                if self.local or not transient(error):
                    self._answered = self._answered or isinstance(error, FileNotFoundError | FileExistsError)
                    raise
                pause = random.uniform(0.5, 1) * min(15.0, 0.2 * 2**attempt)
                limit = self.patience if self._answered else min(self.patience, FIRST)
                if time.monotonic() - started + pause > limit:
                    raise
                attempt += 1
                logger.info("%s: %s; attempt %d in %.1f s", self.root, _reason(error), attempt + 1, pause)
                time.sleep(pause)

    @contextlib.contextmanager
    def _temporary(self, key: str, data: bytes | memoryview | Path) -> Iterator[str]:
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


Found = list[tuple[str, Callable[[], Any]]]


def transient(error: BaseException) -> bool:
    """Whether a request may well succeed when it is made again: the store or the network failed, not the request."""
    if isinstance(error, FileNotFoundError) and _code(error) == "NoSuchUpload":
        return True  # of an upload in parts whose last answer was lost: it is completed, and cannot be given up
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)  # botocore's ClientError, which s3fs translates
        if isinstance(response, dict):
            status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            code = str(response.get("Error", {}).get("Code", ""))
            return status >= 500 or status in (408, 409, 429) or code in BROKEN_ON_THE_WAY
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT:
        return True
    module, name = type(error).__module__.split(".")[0], type(error).__name__
    if module in ("botocore", "aiobotocore"):
        words = ("Connection", "Timeout", "HTTPClient", "IncompleteRead", "ResponseStreaming")
        return any(word in name for word in words)
    return module in ("aiohttp", "http") or (error.__cause__ is not None and transient(error.__cause__))


def _code(error: BaseException) -> str:
    """S3's own word for an error that s3fs translated."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
