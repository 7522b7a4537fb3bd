"""The checkpoints of a run, fetched from the Hub once and kept in the store: workers start without the Hub.

    _models/<organisation>--<name>/<revision>-<files>.json     what was fetched: commit, hash, sha256 of every file
    _models/<organisation>--<name>/<hash>/...                     the files, as the Hub has them

The record comes last and is what makes a copy exist. From then on it is the model, also where the Hub moves on: a
settings file that names no revision is pinned by the first fetch.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pahi import models
from pahi.artifacts import Store
from pahi.artifacts.fingerprint import canonical_json, content_hash
from pahi.errors import UserError
from pahi.fetch import cache_folder, commit_of, placed
from pahi.generators.load import generator_hash, located
from pahi.rewards.base import Source
from pahi.rewards.load import source
from pahi.settings import Settings

PREFIX = "_models"
Patterns = tuple[str, ...]


class Checkpoints:
    """Models by id and revision: the store's copy where there is one, the Hub's otherwise.

    `only` and `skip` are those of `models.resolve`: which files of a repository are meant.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def find(self, model_id: str, revision: str | None, only: Patterns = (), skip: Patterns = ()) -> Path:
        """The local folder of a model. Raises UserError where it is nowhere, or its copy is damaged."""
        record = self.record(model_id, revision, only, skip)
        if record is None:
            return models.resolve(model_id, revision, only=only, skip=skip)
        return self._local(model_id, record)

    def place(self, model_id: str, revision: str | None, only: Patterns = (), skip: Patterns = ()) -> str:
        """The folder of the store's copy; the id as it is where there is none."""
        record = self.record(model_id, revision, only, skip)
        return model_id if record is None else str(self._local(model_id, record))

    def record(
        self, model_id: str, revision: str | None, only: Patterns = (), skip: Patterns = ()
    ) -> dict[str, Any] | None:
        """What the store has of a Hub model, or None."""
        if not on_hub(model_id):
            return None
        data = self.store.read_or_none(_key(model_id, revision, only, skip))
        return None if data is None else json.loads(data)

    def keep(self, model_id: str, revision: str | None, only: Patterns = (), skip: Patterns = ()) -> Path:
        """Copies a Hub model into the store, unless it is there already; the local folder."""
        folder = self.find(model_id, revision, only, skip)
        if not on_hub(model_id) or self.record(model_id, revision, only, skip) is not None:
            return folder
        entries = models.files(folder, only, skip)
        digest = content_hash({name: entry["sha256"] for name, entry in entries.items()})
        for name in entries:
            self.store.create_from(f"{_home(model_id)}/{digest}/{name}", folder / name)
        record = {
            "id": model_id,
            "revision": revision,
            "commit": commit_of(folder) or revision,
            "hash": digest,
            "files": entries,
        }
        self.store.create(_key(model_id, revision, only, skip), canonical_json(record))
        return folder

    def _local(self, model_id: str, record: dict[str, Any]) -> Path:
        """A folder with the copy's files, every one compared with its digest when it is brought here."""
        prefix = f"{_home(model_id)}/{record['hash']}"
        if self.store.local:
            return Path(self.store.path(prefix))
        folder = cache_folder() / "checkpoints" / record["hash"]
        if folder.is_dir():
            return folder
        with placed(folder) as temporary:
            for name, entry in record["files"].items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                self.store.read_to(f"{prefix}/{name}", target)
                with target.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                        where = self.store.url(f"{prefix}/{name}")
                        raise UserError(f"{where} is damaged: remove it and run `pahi cache --fetch-only`")
        return folder


def on_hub(model_id: str) -> bool:
    """Whether an id can only be the Hub's: no package, URL or folder."""
    plain = model_id.count("/") == 1 and "://" not in model_id and not model_id.startswith(("pkg:", ".", "/", "~"))
    return plain and not Path(model_id).is_dir()


def keep_all(settings: Settings, checkpoints: Checkpoints) -> Iterator[tuple[str, Source]]:
    """Every checkpoint of a run, kept in the store: its name, and where it is here."""
    s, r = settings.generator, settings.rewards
    folders = located(s, lambda *repository: str(checkpoints.keep(*repository)))
    yield "generator", Source(Path(folders.id), Path(folders.id), generator_hash(located(s, checkpoints.place)))
    for model in (*r.train, *r.held_out, *r.judges):
        yield f"reward/{model.name}", source(model, checkpoints.keep)


def _home(model_id: str) -> str:
    return f"{PREFIX}/{model_id.replace('/', '--')}"


def _key(model_id: str, revision: str | None, only: Patterns, skip: Patterns) -> str:
    return f"{_home(model_id)}/{revision or 'main'}-{content_hash([list(only), list(skip)])[:8]}.json"
