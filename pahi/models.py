"""Where models lie, and what their weights hash to."""

import hashlib
import json
import os
from functools import cache
from importlib import resources
from pathlib import Path

from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError


def resolve(model_id: str, revision: str | None = None) -> Path:
    """The local folder of a model: a folder, pkg:package/folder, or a Hub id (fetched once into the Hub's cache)."""
    if model_id.startswith("pkg:"):
        package, _, rest = model_id[4:].partition("/")
        try:
            folder = Path(str(resources.files(package))) / rest
        except ModuleNotFoundError:
            raise UserError(f"{model_id}: there is no package {package!r}") from None
        if not folder.exists():
            raise UserError(f"{model_id}: {package} carries no {rest!r}")
        return folder
    if Path(model_id).is_dir():
        return Path(model_id)
    if model_id.count("/") != 1 or model_id.startswith((".", "/", "~")):
        raise UserError(f"model {model_id!r} is neither a folder here nor a Hub id such as stabilityai/sd-turbo")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, revision=revision, ignore_patterns=["*.ckpt", "*.onnx", "*.msgpack"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot fetch {model_id} from the Hub: {reason}") from None


@cache
def files(folder: Path) -> dict[str, dict[str, str | int]]:
    """sha256 and size of every file below a model's folder, by relative path."""
    found: dict[str, dict[str, str | int]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        found[path.relative_to(folder).as_posix()] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    if not found:
        raise UserError(f"model folder {folder} is empty")
    return found


def model_hash(folder: Path) -> str:
    """One hash over a model's files, whatever the folder is called."""
    return content_hash({name: entry["sha256"] for name, entry in files(folder).items()})


def _sha256(path: Path) -> str:
    # The Hub's cache names a large file's blob by its sha256, so that gigabytes need not be read again.
    blob = path.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    memo_path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pahi" / "digests.json"
    stat = path.stat()
    large = stat.st_size > 50_000_000
    key = f"{blob}:{stat.st_size}:{stat.st_mtime_ns}"
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
