"""Brings models here: the files of a snapshot that are needed, from the Hub or from a store, verified."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from pahi.errors import UserError, first_line

INDEX = "model_index.json"
Patterns = tuple[str, ...]

# What loading never reads: other frameworks' weights, pictures and prose.
UNUSED = re.compile(
    r"\.(ckpt|onnx|onnx_data|pb|msgpack|h5|ot|tflite|gguf|xml|md|txt\.gz|png|jpe?g|webp|gif|mp4|pdf)$|LICENSE|\.gitattributes",
    re.IGNORECASE,
)
TEXT_FILES = ("merges.txt", "vocab.txt")
PICKLES = (".bin", ".pt", ".pth", ".bin.index.json")
SAFE = (".safetensors", ".safetensors.index.json")
# `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`: the same weights once more.
VARIANT = re.compile(r"\.(fp16|fp32|bf16|ema|ema_only|non_ema)(?=[.-])")
# Parts of a pipeline that one step from text never calls.
NEVER = ("safety_checker", "feature_extractor", "image_encoder")


def components(index: dict[str, Any]) -> list[str]:
    """The parts that a pipeline's model_index.json names and a text-to-image step needs."""
    parts = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
    return [name for name in parts if name not in NEVER]


def select(names: Iterable[str], parts: list[str] | None = None, only: Patterns = (), skip: Patterns = ()) -> list[str]:
    """The files of a snapshot that loading reads.

    safetensors rather than pickles of the same folder, full weights rather than their variants, and of a pipeline
    (`parts` from its index) the folders of its parts, without single-file copies of the whole. `only` are patterns that
    replace these rules; `skip` are parts of which the configuration alone is needed.
    """
    names = sorted(n for n in names if not any(piece.startswith(".") for piece in n.split("/")))
    if only:
        return [n for n in names if any(fnmatch(n, pattern) for pattern in only)]
    names = [n for n in names if not UNUSED.search(n) or n.rpartition("/")[2] in TEXT_FILES]
    if parts is not None:
        names = [n for n in names if n == INDEX or ("/" in n and n.split("/")[0] in parts)]
    safe = {n.rpartition("/")[0] for n in names if n.endswith(SAFE)}
    names = [n for n in names if not (n.endswith(PICKLES) and n.rpartition("/")[0] in safe)]
    names = [n for n in names if not (n.split("/")[0] in skip and n.endswith((*PICKLES, *SAFE)))]
    plain = {n.rpartition("/")[0] for n in names if n.endswith((*SAFE, *PICKLES)) and not VARIANT.search(n)}
    return [n for n in names if not (VARIANT.search(n) and n.rpartition("/")[0] in plain)]


# ------------------------------------------------------------------------------------------------------------ the Hub


@cache
def from_hub(model_id: str, revision: str | None, only: Patterns = (), skip: Patterns = ()) -> Path:
    """A snapshot in the Hub's cache, complete and verified. A pinned revision that is there needs no network."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download

    with _explained(model_id, revision):
        first = list(only) or [INDEX, "config.json"]  # the listing of the whole commit comes with them
        commit = Path(snapshot_download(model_id, revision=revision, allow_patterns=first)).name
        tree = [file.path for file in get_cached_repo_tree(model_id, revision=commit)]
        parts = None
        if INDEX in tree and not only:
            parts = _read_index(model_id, Path(snapshot_download(model_id, revision=commit, allow_patterns=[INDEX])))
        names = select(tree, parts, only, skip)
        if not names:
            raise UserError(f"{model_id} has no {' or '.join(only) or 'model files'} at revision {commit[:12]}")
        # Names are patterns to the Hub's client.
        escaped = [name.replace("[", "[[]") for name in names]
        folder = Path(snapshot_download(model_id, revision=commit, allow_patterns=escaped))
    for name in names:
        verify(folder / name, f"{model_id}: {name}")
    return folder


def commit_of(folder: Path) -> str | None:
    """The Hub's commit that a snapshot in its cache is, or None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name) else None


def verify(path: Path, what: str) -> None:
    """Compares a file of the Hub's cache with the digest that names it, and removes it where they differ."""
    from pahi.models import sha256

    blob = path.resolve()
    if blob.parent.name != "blobs":
        return
    if len(blob.name) == 64:
        got = sha256(path)
    elif len(blob.name) == 40:  # a small file, named by git: sha1 over a header and the bytes
        data = path.read_bytes()
        got = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        return
    if got != blob.name:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        kind = "sha256" if len(blob.name) == 64 else "git hash"
        raise UserError(
            f"{what} has {kind} {got[:12]}, the Hub says {blob.name[:12]}: it was damaged on its way or on this disk "
            "and has been removed; run again to fetch it"
        )


@contextmanager
def _explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Turns what the Hub's client raises into one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{model_id} is gated: accept its licence at https://huggingface.co/{model_id}, then set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{model_id} has no revision {revision!r} on the Hub") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the Hub has no model {model_id!r}, or HF_TOKEN does not let you see it") from None
    except errors.RemoteEntryNotFoundError as error:
        name = str(error.response.url).partition("/resolve/")[2].partition("/")[2]
        raise UserError(f"{model_id}: the Hub lists {name} and does not have it; try another revision") from None
    except errors.LocalEntryNotFoundError as error:
        pinned = f" at {revision}" if revision else ""
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE") == "1":
            reason = "HF_HUB_OFFLINE is set"
        else:
            reason = f"the Hub cannot be reached ({first_line(error.__cause__ or error)})"
        raise UserError(
            f"{model_id}{pinned}: {reason}, and the cache holds no complete copy; connect once, or name a local folder"
        ) from None
    except errors.CachedRepoTreeNotFoundError:
        raise UserError(f"{model_id}: fetched by an older client, so its files are not listed; connect once") from None
    except Exception as error:
        # OSError: disk, sizes, names. ValueError: a malformed id. The others are the HTTP client's own classes.
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError | ValueError) and library not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise UserError(
            f"cannot fetch {model_id} from the Hub: {first_line(error)}; run again, what has arrived is kept"
        ) from None


def _read_index(model_id: str, folder: Path) -> list[str]:
    try:
        index = json.loads((folder / INDEX).read_text())
        return components(index)
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{model_id}: {INDEX} cannot be read; fetch the model again") from None


# ------------------------------------------------------------------------------------------------------------- stores


def cache_folder() -> Path:
    """Where PAHI keeps what it can fetch again."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pahi"


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A folder to fill, beside `folder`, whose name it takes at the end: whole or not at all, whoever comes first."""
    temporary = folder.with_name(f".tmp-{secrets.token_hex(8)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first, with the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def from_store(url: str, only: Patterns = (), skip: Patterns = ()) -> Path:
    """A snapshot below an fsspec URL (s3://bucket/prefix), copied here once for each of its contents."""
    import fsspec

    where = url.rstrip("/")
    try:
        fs, base = fsspec.core.url_to_fs(where, use_listings_cache=False)
        found = fs.find(base, detail=True)
    except Exception as error:
        raise UserError(f"cannot read model {url}: {first_line(error)}") from None
    listing = {path[len(base.rstrip("/")) + 1 :]: info for path, info in found.items()}
    parts = None
    if INDEX in listing and not only:
        try:
            parts = components(json.loads(fs.cat_file(f"{base}/{INDEX}")))
        except (ValueError, AttributeError):
            raise UserError(f"{url}: {INDEX} cannot be read; upload the model again") from None
    names = select(listing, parts, only, skip)
    if not names:
        raise UserError(f"there is no model at {url}{f' with {only[0]}' if only else ''}")
    # What a store says of an object's contents: S3's ETag, others' checksum or time of change.
    state = {
        name: [listing[name].get("size"), str(next((listing[name][k] for k in _STATE if listing[name].get(k)), ""))]
        for name in names
    }
    key = hashlib.sha256(json.dumps([where, state], sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "models" / key
    if folder.is_dir():
        return folder
    try:
        with placed(folder) as temporary:
            for name in names:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{base}/{name}", str(target))
                if listing[name].get("size") not in (None, target.stat().st_size):
                    raise OSError(f"{name} is {target.stat().st_size} bytes, expected {listing[name]['size']}")
    except Exception as error:
        raise UserError(f"cannot fetch model {url}: {first_line(error)}; run again") from None
    return folder


_STATE = ("ETag", "etag", "md5Hash", "md5", "ino", "mtime", "LastModified", "last_modified", "updated", "created")
