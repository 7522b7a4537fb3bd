"""Copies a finished dataset to the Hub, to a folder or to another store. What has arrived is never sent twice."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pahi import models
from pahi.artifacts import Output, Store, content_hash
from pahi.errors import PahiError, UserError, first_line

CARD = "README.md"
COMMIT_FILES, COMMIT_BYTES = 50, 1 << 30  # what a commit holds at most: one that arrived is not sent again
# What an earlier publication may have left: nothing else is ever removed.
OURS = re.compile(r"((preferences/)?(train|validation|test)|rejects)/part-\d{5}\.parquet")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class File:
    """`key` in the store, `name` where it is published."""

    key: str
    name: str
    bytes: int
    sha256: str


def published_files(output: Output, *, preferences: bool = False) -> list[File]:
    """The files of a dataset, or of its preference set alone; the card comes last, as it names the others."""
    manifest = output.require()
    found = [
        (f"{table}/{shard['name']}.parquet", entry)
        for shard in manifest.data["shards"]
        for table, entry in shard["tables"].items()
    ]
    found += manifest.data["files"].items()
    own = output.store.read(output.key("manifest.json"))
    found.append(("manifest.json", {"bytes": len(own), "sha256": content_hash(own)}))
    prefix = "preferences/" if preferences else ""
    files = [
        File(output.key(name), name.removeprefix(prefix), entry["bytes"], entry["sha256"])
        for name, entry in found
        if name.startswith(prefix)
    ]
    if not files:
        raise UserError(
            f"{output.url} holds no preference pairs; draw more pictures a prompt, or see curate.preferences"
        )
    return sorted(files, key=lambda f: (f.name == CARD, f.name))


def publish(
    output: Output, target: str, *, preferences: bool = False, private: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Sends what is missing at `target`: hf://datasets/OWNER/NAME, a folder, or an fsspec URL.

    Returns where it is, and how many files were sent, were there already, and were removed as an earlier dataset's.
    """
    files = published_files(output, preferences=preferences)
    report = progress or (lambda done, total: None)
    if target.startswith("hf:"):
        match = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", target)
        if match is None:
            raise UserError(f"{target}: expected hf://datasets/OWNER/NAME")
        return _to_hub(output, files, match[1], private, report)
    return _to_store(output, files, target, report)


def _to_store(output: Output, files: list[File], target: str, progress: Progress) -> dict[str, Any]:
    there = Store(target)
    sent = 0
    for i, file in enumerate(files):
        stored = there.read_or_none(file.name)
        if stored is None or content_hash(stored) != file.sha256:
            there.replace(file.name, _read(output, file))
            sent += 1
        progress(i + 1, len(files))
    stale = [k for k in there.list("") if OURS.fullmatch(k) and k not in {f.name for f in files}]
    for key in stale:
        there.delete(key)
    return {"url": target, "sent": sent, "unchanged": len(files) - sent, "removed": len(stale)}


def _to_hub(output: Output, files: list[File], repo: str, private: bool, progress: Progress) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    api, kind = HfApi(library_name="pahi"), "dataset"
    with _explained(repo):
        url = str(api.create_repo(repo, repo_type=kind, private=private, exist_ok=True))
        tree = [f for f in api.list_repo_tree(repo, repo_type=kind, recursive=True) if isinstance(f, RepoFile)]
    known = {f.path: f.lfs.sha256 if f.lfs is not None else f.blob_id for f in tree}
    todo = [f for f in files if f.name not in known or known[f.name] not in (f.sha256, _git_hash(output, f))]
    stale = sorted(set(known) - {f.name for f in files})
    stale = [name for name in stale if OURS.fullmatch(name)]
    done = len(files) - len(todo)
    progress(done, len(files))
    # The data first, the card and what goes away last: a reader of the old card finds its files until then.
    batches = [*_batches([f for f in todo if f.name != CARD]), [f for f in todo if f.name == CARD]]
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        operations: list[Any] = [CommitOperationDelete(name) for name in stale] if last else []
        with TemporaryDirectory() as scratch, _explained(repo):
            operations += [CommitOperationAdd(f.name, str(_local(output, f, Path(scratch)))) for f in batch]
            if operations:
                message = (
                    f"{output.dataset} {output.fingerprint}, files {done + 1} to {done + len(batch)} of {len(files)}"
                )
                api.create_commit(repo, operations, commit_message=message, repo_type=kind)
        done += len(batch)
        progress(done, len(files))
    return {"url": url, "sent": len(todo), "unchanged": len(files) - len(todo), "removed": len(stale)}


def _batches(files: list[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    for file in files:
        if batch and (len(batch) == COMMIT_FILES or sum(f.bytes for f in batch) + file.bytes > COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _local(output: Output, file: File, scratch: Path) -> Path:
    """The file on this disk, whole."""
    if output.store.local:
        path = Path(output.store.path(file.key))
    else:
        path = scratch / hashlib.sha256(file.name.encode()).hexdigest()
        output.store.read_to(file.key, path)
    if not path.is_file() or models.sha256(path) != file.sha256:
        raise _damaged(output, file)
    return path


def _read(output: Output, file: File) -> bytes:
    data = output.store.read_or_none(file.key)
    if data is None or content_hash(data) != file.sha256:
        raise _damaged(output, file)
    return data


def _git_hash(output: Output, file: File) -> str:
    """What the Hub calls a small file that it keeps in git."""
    if file.bytes > 20_000_000:
        return ""  # never kept in git
    data = _read(output, file)
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _damaged(output: Output, file: File) -> UserError:
    return UserError(
        f"{output.store.url(file.key)} is missing or damaged, so it was not published; "
        f"`pahi verify {output.dataset} --repair`, then run again"
    )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turns what the Hub's client raises into one line."""
    from huggingface_hub import errors

    try:
        yield
    except PahiError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.OfflineModeIsEnabled) or os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UserError(f"cannot publish to {repo}: HF_HUB_OFFLINE is set") from None
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            raise UserError(
                f"the Hub does not let you write {repo}: set HF_TOKEN to a token that may write there"
            ) from None
        library = type(error).__module__.split(".")[0]
        known = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet")
        if not isinstance(error, OSError | ValueError | RuntimeError) and library not in known:
            raise
        raise PahiError(
            f"cannot publish to {repo}: {first_line(error)}; run again, what has arrived is not sent twice"
        ) from error
