"""What people write to a generator inside a prompt: `--ar 16:9`, `<lora:name:0.8>`, `(word:1.3)`.

They are instructions to one program and no part of the picture's description, so they are taken out of the text and
kept beside it.
"""

import re

# Midjourney's list of parameters. An unknown `--word` is left alone: people also write dashes.
_VALUED = (
    "ar|aspect|v|version|niji|s|stylize|c|chaos|q|quality|seed|sameseed|stop|style|iw|w|weird|r|repeat|sref|sw|sv|"
    "cref|cw|oref|ow|exp|p|profile|personalize|h|height|width|cfg|steps|sampler|upscale|neg|negative"
)
_BARE = "tile|hd|test|testp|creative|video|uplight|upbeta|raw|fast|relax|turbo|draft|stealth|public"
# Autocorrection makes one long dash of two.
_DASHES = "(?:--|\u2014|\u2013)"
_END = r"(?=[\s,;]|$)"
_PARAMETER = re.compile(
    rf"(?<!\S){_DASHES}(?:(?P<no>no)[ =]+(?P<things>(?:(?!\s{_DASHES}[A-Za-z]).)+)"
    rf"|(?P<name>{_VALUED})(?:[ =]+(?P<value>[\w.:/\-#]*\d[\w.:/\-#]*|raw|cute|scenic|expressive|original){_END}"
    rf"|(?=\s*$|\s+{_DASHES}[A-Za-z]))"
    rf"|(?P<bare>{_BARE}){_END})",
    re.IGNORECASE,
)
_LORA = re.compile(r"<(?P<kind>lora|lyco|hypernet):(?P<value>[^<>]{1,100})>", re.IGNORECASE)
# The text must not end in a digit, or `(John 3:1)` and `(16:9)` would lose their numbers.
_WEIGHT_END = re.compile(r"(?<![\d\s\\(]):\s*(?P<weight>\d(?:\.\d{1,4})?|\.\d{1,4})\s*\)")


def take_parameters(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text without parameters, and (name, value) of each, in order; the value of a bare one is empty."""
    # Far cheaper to see than the patterns are to run.
    if "--" not in text and "<" not in text and "\u2014" not in text and "\u2013" not in text:
        return text, []
    found: list[tuple[int, str, str]] = []

    def parameter(match: re.Match[str]) -> str:
        if match["no"]:
            found.append((match.start(), "no", match["things"].strip()))
        elif match["name"]:
            found.append((match.start(), match["name"].lower(), match["value"] or ""))
        else:
            found.append((match.start(), match["bare"].lower(), ""))
        return " "

    def lora(match: re.Match[str]) -> str:
        found.append((match.start(), match["kind"].lower(), match["value"]))
        return " "

    text = _PARAMETER.sub(parameter, text)
    text = _LORA.sub(lora, text)
    return text, [(name, value) for _, name, value in found]


def take_weights(text: str) -> tuple[str, list[tuple[str, float]]]:
    """The text with `(word:1.3)` as `word`, and (text, weight) of each, inner ones first. One pass over the text."""
    if ":" not in text or _WEIGHT_END.search(text) is None:
        return text, []
    found: list[tuple[str, float]] = []
    ends = {match.start(): match for match in _WEIGHT_END.finditer(text)}
    pieces: list[str] = []  # of the innermost open bracket last; each "(" starts one
    opened: list[int] = []  # where in pieces a bracket was opened
    place = 0
    while place < len(text):
        character = text[place]
        if character == "(" and text[place - 1 : place] != "\\":
            opened.append(len(pieces))
            pieces.append("(")
        elif place in ends and opened:
            start = opened.pop()
            inner = "".join(pieces[start + 1 :])
            del pieces[start:]
            pieces.append(inner)
            found.append((inner.strip(), float(ends[place]["weight"])))
            place = ends[place].end()
            continue
        elif character == ")" and opened:
            opened.pop()
            pieces.append(character)
        else:
            pieces.append(character)
        place += 1
    return "".join(pieces), found
