"""A reward's files: fetched once, only those that it reads, and hashed."""

from fnmatch import fnmatch
from pathlib import Path

from pahi import models
from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError
from pahi.rewards.base import Kind, Source
from pahi.settings import RewardModel


def locate(model: RewardModel, kind: Kind) -> Source:
    """The folders of a reward and of its base, fetched where they are not here. Raises UserError."""
    try:
        return _locate(model, kind)
    except UserError as error:
        raise UserError(f"reward {model.name}: {error}") from None


def _locate(model: RewardModel, kind: Kind) -> Source:
    folder = fetch(model.id, model.revision, kind.files)
    own = {name: entry["sha256"] for name, entry in pinned(folder, kind.files).items()}
    if not own:
        raise UserError(f"{model.id} holds none of {', '.join(kind.files)}")
    beside = {name: entry["sha256"] for name, entry in pinned(folder, kind.base_files).items()}
    if beside and not model.base:
        return Source(folder, folder, content_hash(own | beside))
    if not (model.base or kind.base):
        raise UserError(f"{model.id} holds none of {', '.join(kind.base_files)}; name the model that does as its base")
    base = fetch(model.base or kind.base, model.base_revision, kind.base_files)
    below = {f"base/{name}": entry["sha256"] for name, entry in pinned(base, kind.base_files).items()}
    if not below:
        raise UserError(f"{model.base or kind.base} holds none of {', '.join(kind.base_files)}")
    return Source(folder, base, content_hash(own | below))


def pinned(folder: Path, patterns: tuple[str, ...]) -> dict[str, dict[str, str | int]]:
    """sha256 and size of the files that match, by relative path."""
    return {name: entry for name, entry in models.files(folder).items() if _matches(name, patterns)}


def fetch(model_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """As models.resolve, but of a Hub repository only the files that match: some hold many formats of one model."""
    if model_id.startswith("pkg:") or Path(model_id).is_dir() or model_id.count("/") != 1 or model_id[0] in "./~":
        return models.resolve(model_id, revision)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the Hub's client, httpx and the disk each have their own
        raise UserError(f"cannot fetch {model_id} from the Hub: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name.rsplit("/", 1)[-1], pattern) for pattern in patterns)
