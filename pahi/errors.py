"""What can go wrong, as a person should read it."""


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
