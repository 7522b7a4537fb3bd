"""A function of the user's, named as `module:function`: a judge, a classifier, an embedder."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from pahi.artifacts.fingerprint import content_hash
from pahi.errors import UserError, first_line


def find_function(target: str, what: str) -> Callable[..., Any]:
    """The function. Raises UserError, which begins with `what`, where it cannot be imported or called."""
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module's own first lines raise
        raise UserError(f"{what}: cannot import {target!r}: {first_line(error)}") from None
    if not callable(function):
        raise UserError(f"{what}: {target!r} is no function")
    return function


def function_hash(target: str) -> str:
    """A hash of its name and of its module's text, so that an edited function is another one."""
    try:
        text = inspect.getsource(importlib.import_module(target.partition(":")[0]))
    except (OSError, TypeError):
        text = target
    return content_hash({"target": target, "source": text})
