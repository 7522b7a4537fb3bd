"""Where models lie, and what their weights hash to."""

import hashlib
import json
import os
from functools import cache
from importlib import resources
from pathlib import Path

from pahi import fetch
from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError


def resolve(
    model_id: str, revision: str | None = None, *, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()
) -> Path:
    """The local folder of a model: a folder, pkg:package/folder, an fsspec URL such as s3://bucket/model, or a Hub id.

    What is not local is fetched once into a cache, verified: the files that `fetch.select` names, or those that match
    the patterns `only`; of the parts in `skip` the configuration alone. `revision` is a Hub repository's commit.
    """
    if model_id.startswith("pkg:"):
        package, _, rest = model_id[4:].partition("/")
        try:
            folder = Path(str(resources.files(package))) / rest
        except ModuleNotFoundError:
            raise UserError(f"{model_id}: there is no package {package!r}") from None
        if not folder.exists():
            raise UserError(f"{model_id}: {package} carries no {rest!r}")
        return folder
    if "://" in model_id:
        return fetch.from_store(model_id, only, skip)
    if Path(model_id).expanduser().is_dir():
        return Path(model_id).expanduser()
    if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise UserError(f"model {model_id!r} is neither a folder here nor a Hub id such as stabilityai/sd-turbo")
    return fetch.from_hub(model_id, revision, only, skip)


@cache
def files(folder: Path, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> dict[str, dict[str, str | int]]:
    """sha256 and size of every file that loading reads below a model's folder, by relative path."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    parts = None
    if fetch.INDEX in names and not only:
        try:
            parts = fetch.components(json.loads((folder / fetch.INDEX).read_text()))
        except (ValueError, AttributeError):
            raise UserError(f"{folder}: {fetch.INDEX} cannot be read; fetch the model again") from None
    found: dict[str, dict[str, str | int]] = {}
    for name in fetch.select(names, parts, only, skip):
        found[name] = {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
    if not found:
        raise UserError(f"model folder {folder} {f'has no {only[0]}' if only else 'is empty'}")
    return found


def model_hash(folder: Path, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> str:
    """One hash over a model's files, whatever the folder is called."""
    return content_hash({name: entry["sha256"] for name, entry in files(folder, only, skip).items()})


def sha256(path: Path) -> str:
    """A file's digest. Large files' are remembered with size and time of change, so that gigabytes are read once."""
    memo_path = fetch.cache_folder() / "digests.json"
    stat = path.stat()
    large = stat.st_size > 50_000_000
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    memo: dict[str, str] = {}
    if large:
        try:
            memo = json.loads(memo_path.read_text())
        except (OSError, ValueError):
            memo = {}
        if key in memo:
            return memo[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if large:
        memo[key] = digest
        try:
            memo_path.parent.mkdir(parents=True, exist_ok=True)
            temporary = memo_path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(memo))
            temporary.replace(memo_path)
        except OSError:
            pass  # only slower the next time
    return digest
