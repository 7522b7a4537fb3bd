"""A reward's files: fetched once, only those that it reads, and hashed."""

from collections.abc import Callable
from pathlib import Path

from pahi import models
from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError
from pahi.fetch import select
from pahi.rewards.base import Kind, Source
from pahi.settings import RewardModel

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
Find = Callable[[str, str | None, tuple[str, ...]], Path]
"""From a model's id, revision and patterns of its files to the folder that holds them."""


def locate(model: RewardModel, kind: Kind, find: Find) -> Source:
    """The folders of a reward and of its base, as `find` finds them. Raises UserError."""
    try:
        return _locate(model, kind, find)
    except UserError as error:
        raise UserError(f"reward {model.name}: {error}") from None


def _locate(model: RewardModel, kind: Kind, find: Find) -> Source:
    folder = find(model.id, model.revision, kind.files)
    own = {name: entry["sha256"] for name, entry in pinned(folder, kind.files).items()}
    if not own:
        raise UserError(f"{model.id} holds none of {', '.join(kind.files)}")
    weights = content_hash(sorted(str(digest) for name, digest in own.items() if name.endswith(WEIGHTS)))
    beside = {name: entry["sha256"] for name, entry in pinned(folder, kind.base_files).items()}
    if beside and not model.base:
        return Source(folder, folder, content_hash(own | beside), weights)
    if not (model.base or kind.base):
        raise UserError(f"{model.id} holds none of {', '.join(kind.base_files)}; name the model that does as its base")
    base = find(model.base or kind.base, model.base_revision, kind.base_files)
    below = {f"base/{name}": entry["sha256"] for name, entry in pinned(base, kind.base_files).items()}
    if not below:
        raise UserError(f"{model.base or kind.base} holds none of {', '.join(kind.base_files)}")
    return Source(folder, base, content_hash(own | below), weights)


def pinned(folder: Path, patterns: tuple[str, ...]) -> dict[str, dict[str, str | int]]:
    """sha256 and size of the files that match, by relative path."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return models.files(folder, patterns) if select(names, only=patterns) else {}


def fetch(model_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """The folder of a model, of whose repository only the files that match are fetched."""
    return models.resolve(model_id, revision, only=patterns)
