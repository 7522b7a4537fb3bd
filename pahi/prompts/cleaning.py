"""One spelling for prompts that read the same, and the identity that follows from it."""

import hashlib
import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from html.entities import html5
from typing import NamedTuple

from pahi.prompts.parameters import take_parameters, take_weights
from pahi.settings import CLEANING

# Entities count only with their semicolon: HTML also reads `&copy=1` as one, which prose such as `R&para` never means.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,40});")
# Text that was escaped many times over is undone in one pass, not in one pass a level.
_AMPERSANDS = re.compile(r"&(?:(?:amp|AMP|#0{0,4}38|#[xX]0{0,4}26);)+")
# Arabic and Syriac number signs and the like are format characters by category, but one sees them.
_VISIBLE_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


class Cleaned(NamedTuple):
    """A prompt after cleaning."""

    text: str
    flags: list[str]  # the steps that changed something, in the order of CLEANING
    parameters: list[tuple[str, str]]  # (name, value), such as ("ar", "16:9")
    weights: list[tuple[str, float]]  # (text, weight), such as ("word", 1.3)


def clean(text: str, steps: Sequence[str] = CLEANING) -> tuple[str, list[str]]:
    """The cleaned prompt, and what cleaning changed: some of the steps' names, in their order.

    Idempotent: cleaning a cleaned prompt changes nothing and gives no flags. The result always encodes as UTF-8 where
    the step `control` is among the steps.
    """
    cleaned = clean_fully(text, steps)
    return cleaned.text, cleaned.flags


def clean_fully(text: str, steps: Sequence[str] = CLEANING) -> Cleaned:
    """Like `clean`, with what the steps `parameters` and `weights` took out of the text."""
    parameters: list[tuple[str, str]] = []
    weights: list[tuple[str, float]] = []
    if _untouched(text):
        return Cleaned(text, [], parameters, weights)
    changed = set()
    while True:
        before = text
        for step in steps:
            if step == "parameters":
                after, taken = take_parameters(text)
                parameters += taken
            elif step == "weights":
                after, stressed = take_weights(text)
                weights += stressed
            else:
                after = _STEPS[step](text)
            if after != text:
                changed.add(step)
            text = after
        # Most texts are plain after one round; the others show it in a second one that finds nothing.
        if text == before or _untouched(text):
            return Cleaned(text, [step for step in steps if step in changed], parameters, weights)
        # One step can uncover work for another (`＆amp;lt;`, a zero-width space within an entity). It ends: entities,
        # parameters and weights only ever get shorter, and the other steps are idempotent.


def _untouched(text: str) -> bool:
    """Whether no step can find anything: true of most prompts, and far cheaper to see than the steps are to run."""
    return (
        text.isascii()
        and text.isprintable()
        and "&" not in text
        and "--" not in text
        and ":" not in text  # of every weight and of <lora:...>
        and "  " not in text
        and text[:1] != " "
        and text[-1:] != " "
    )


def prompt_id(cleaned: str) -> str:
    """First 20 hexadecimal digits of the sha256 of the cleaned text in UTF-8."""
    return hashlib.sha256(cleaned.encode()).hexdigest()[:20]


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _unescape(text: str) -> str:
    if "&" not in text:
        return text

    def character(match: re.Match[str]) -> str:
        entity = match.group()
        # html.unescape would also read a known name at the start of an unknown one, `&notice;` as `¬ice;`.
        return html.unescape(entity) if entity[1] == "#" or entity[1:] in html5 else entity

    return _ENTITY.sub(character, _AMPERSANDS.sub("&", text))


def _drop_invisible(text: str) -> str:
    if text.isprintable():  # then it has none of these categories, and most texts are
        return text
    gone = [c for c in set(text) if not c.isprintable() and _invisible(c)]
    return text.translate(dict.fromkeys(map(ord, gone))) if gone else text


def _invisible(character: str) -> bool:
    """Control, format (zero-width) and lone surrogate; white space is not, since it divides words."""
    if character.isspace() or character in _VISIBLE_FORMAT:
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _collapse(text: str) -> str:
    return " ".join(text.split())


_STEPS: dict[str, Callable[[str], str]] = {
    "nfkc": _nfkc,
    "html": _unescape,
    "control": _drop_invisible,
    "whitespace": _collapse,
}
