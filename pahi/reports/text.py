"""Numbers as the report writes them. What was not measured is "n/a", never zero."""

import math
from typing import Any

MISSING = "n/a"
MINUS = "\N{MINUS SIGN}"


def finite(value: Any) -> float | None:
    """The number, or None for what is missing, not a number or infinite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 2) -> str:
    x = finite(value)
    return MISSING if x is None else f"{_settled(x, digits):,.{digits}f}".replace("-", MINUS)


def signed(value: Any, digits: int = 2) -> str:
    x = finite(value)
    return MISSING if x is None else f"{_settled(x, digits):+,.{digits}f}".replace("-", MINUS)


def percent(value: Any, digits: int = 0) -> str:
    x = finite(value)
    return MISSING if x is None else number(100 * x, digits) + "%"


def points(value: Any, digits: int = 1) -> str:
    """A difference of two shares."""
    x = finite(value)
    return MISSING if x is None else signed(100 * x, digits)


def count(value: Any) -> str:
    x = finite(value)
    return MISSING if x is None else f"{x:,.0f}"


def short(value: Any) -> str:
    """For axes and settings: as many digits as it takes."""
    x = finite(value)
    return MISSING if x is None else f"{x:.6g}".replace("-", MINUS)


def interval(value: Any) -> dict[str, float | None] | None:
    """`{value, low, high}` with numbers only; None where there is not even a value."""
    if not isinstance(value, dict) or finite(value.get("value")) is None:
        return None
    return {key: finite(value.get(key)) for key in ("value", "low", "high")}


def plural(n: Any, one: str) -> str:
    return f"{count(n)} {one}" + ("" if n == 1 else "s")


def _settled(x: float, digits: int) -> float:
    return round(x, digits) + 0.0  # +0.0 turns -0.0 into 0.0
