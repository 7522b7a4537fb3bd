"""What can go wrong, as a person should read it."""

import re
from importlib.util import find_spec

# What `pip install pahi` leaves out, and the extra that brings it.
EXTRAS = {
    "datasets": "pipeline",
    "prefect": "pipeline",
    "s3fs": "s3",
    "peft": "models",
    "sentencepiece": "models",
}


class PahiError(Exception):
    """Ends a command in one line. `exit_code` is what the shell sees."""

    exit_code = 1


class UserError(PahiError):
    """A mistake the user can mend: the message says what is wrong, where, and what to do. Never retried."""

    exit_code = 2


class StageFailed(PahiError):
    """A stage finished what it could, and some of its shards failed. A rerun continues with exactly those."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def missing(error: BaseException) -> str:
    """ "; pip install 'pahi[s3]'" and the like, where an error asks for a package of an extra that is not installed."""
    words = {(getattr(error, "name", None) or "").partition(".")[0], *re.findall(r"[a-z0-9]+", str(error).lower())}
    for package, extra in EXTRAS.items():
        if package in words and find_spec(package) is None:
            return f"; pip install 'pahi[{extra}]'"
    return ""
