"""What is wrong with someone's settings, in one line: what was given, what was expected, what was perhaps meant."""

import difflib
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

# What pydantic calls a mistake -> what we call it; `{...}` are the fields of its context.
EXPECTED = {
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "list_type": "expected a list, such as [4, 16]",
    "dict_type": "expected keys and values, such as {{name: value}}",
    "model_type": "expected settings of its own, such as {{key: value}}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "literal_error": "expected {expected}",
    "too_short": "expected at least {min_length} of them",
}
PATTERNS = {
    r"^[a-z0-9][a-z0-9._-]{0,62}$": "lower-case letters, digits, '.', '_' and '-', at most 63 of them",
    "^[a-z0-9_]+$": "lower-case letters, digits and '_'",
}


def explain(error: ValidationError, tree: type[BaseModel]) -> str:
    """The first mistake of a validation of `tree`, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    kind, context, given = first["type"], first.get("ctx", {}), first.get("input")
    if kind == "extra_forbidden":
        return f"unknown setting {where!r}{_meant(first['loc'], tree)}"
    if kind == "missing":
        return f"setting {where} is missing: it has no default"
    if kind == "string_pattern_mismatch":
        expected = f"expected {PATTERNS.get(context['pattern'], context['pattern'])}"
    elif kind in EXPECTED:
        expected = EXPECTED[kind].format(**context)
    else:
        message = first["msg"].removeprefix("Value error, ")
        return f"setting {where}: {message}" if where else message
    hint = ""
    if kind == "literal_error":
        hint = nearest(str(given), [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")])
    return f"setting {where}: {expected}, not {_shown(given)}{hint}"


def nearest(word: str, known: list[str]) -> str:
    """ "; did you mean 'x'?", or nothing where nothing is close."""
    close = difflib.get_close_matches(word, known, n=1) or [k for k in known if k.lower() == word.lower()]
    return f"; did you mean {close[0]!r}?" if close else ""


def reason(error: Exception) -> str:
    """Why a file could not be read, or where it is no YAML."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.YAMLError) and mark is not None:
        problem = getattr(error, "problem", "") or "this is no YAML"
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    if isinstance(error, UnicodeDecodeError):
        return "is not text in UTF-8"
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def _meant(loc: tuple[int | str, ...], tree: type[BaseModel]) -> str:
    """A setting whose name is close to an unknown one: beside it, or of the same name elsewhere."""
    below: Any = tree
    for part in loc[:-1]:
        field = getattr(below, "model_fields", {}).get(part)
        if field is not None:  # otherwise the position in a list, or a key of a dictionary
            below = _inner(field.annotation) or field.annotation
    beside = nearest(str(loc[-1]), list(getattr(below, "model_fields", [])))
    if beside:
        return beside
    elsewhere = named(str(loc[-1]), tree)
    return f"; did you mean {' or '.join(repr(path) for path in elsewhere[:3])}?" if elsewhere else ""


def named(word: str, tree: type[BaseModel]) -> list[str]:
    """The keys of the settings that are called `word`, wherever they are; those inside lists aside."""
    return [path for path in _paths(tree) if path.rpartition(".")[2] == word]


def _paths(tree: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting's key, those inside lists aside."""
    found = []
    for name, field in tree.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _paths(field.annotation, f"{prefix}{name}.")
    return found


def _inner(annotation: Any) -> Any:
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")), None)


def _shown(given: Any) -> str:
    text = "empty" if given is None else repr(given)
    return text if len(text) <= 60 else text[:57] + "..."
