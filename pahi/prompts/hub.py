"""Datasets of the Hub as sources, through `datasets` and as a stream: nothing is stored."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pahi.errors import UserError, first_line
from pahi.prompts.columns import find_columns
from pahi.prompts.rows import Row, make_row
from pahi.settings import Source

PREFIX = "hub:"


def read_hub(source: Source) -> Iterator[Row]:
    """Rows of `hub:owner/dataset`, or of a folder that `datasets` can open. Raises UserError where it cannot."""
    import datasets

    place = source.path.removeprefix(PREFIX)
    try:
        found = datasets.load_dataset(place, source.config, split=source.part, revision=source.revision, streaming=True)
        first = next(iter(found.take(1)), None)
    except Exception as error:
        if isinstance(error, ConnectionError):
            raise  # a later try may succeed
        raise UserError(f"{source.path}: cannot be opened by datasets: {first_line(error)}") from None
    if first is None:
        raise UserError(f"{source.path}: its part {source.part!r} has no rows")
    names = list(first)
    columns = find_columns(names, source)
    roles = {role: names[i] for role, i in vars(columns).items() if i is not None}
    # Pictures and the like are not even fetched.
    stream = found.select_columns(list(dict.fromkeys(roles.values())))
    for number, record in enumerate(stream, start=1):
        yield make_row(number, **{role: record.get(name) for role, name in roles.items()})


def content(source: Source) -> str:
    """What the rows depend on: the commit that the revision is now, or a folder's files."""
    place = source.path.removeprefix(PREFIX)
    folder = Path(place).expanduser()
    which: dict[str, Any] = {"config": source.config, "part": source.part}
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder).as_posix()}:".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return f"{digest.hexdigest()} {which}"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return f"{place} {HfApi().dataset_info(place, revision=source.revision).sha} {which}"
    except HFValidationError:
        raise UserError(f"{source.path}: neither a folder nor a dataset's name, owner/dataset") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{source.path}: the Hub is switched off here (HF_HUB_OFFLINE)") from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            raise
        raise UserError(f"{source.path}: {first_line(error)}") from None
