"""The held-out judge: reads a picture with plain image processing and says whether it shows what the prompt asks.

No label of it trains anything. It reads by drawing again: every region that differs from the background is measured
(colour, area, centroid), each shape of that area and centroid is laid over it, and the whole picture must then be
explained by its background and its things, up to soft edges and a little noise.
"""

import itertools
import re
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pahi.tiny import scenes
from pahi.tiny.scenes import BACKGROUNDS, COLORS, SHAPES, SIZE, Item, Spec, all_specs

# ------------------------------------------------------------------------------------------------------------ parsing


def _either(words: object) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]


def _spoken(words: object) -> dict[str, str]:
    """Every way to say each of some words, and what it stands for."""
    return {said: word for word in words for said in scenes.SYNONYMS.get(word, (word,))}  # type: ignore[attr-defined]


_SHAPE, _COLOR, _SIZE, _BACKGROUND = map(_spoken, (SHAPES, COLORS, scenes.SIZES, BACKGROUNDS))
_PLURAL = {scenes.PLURALS.get(said, said + "s"): word for said, word in _SHAPE.items()}
_NUMBER = {said: count for count, words in scenes.NUMBERS.items() for said in words}
_RELATION = {said: relation for relation, words in scenes.RELATION_WORDS.items() for said in words}


@cache
def _grammar() -> re.Pattern[str]:
    def noun(n: int) -> str:
        size = rf"(?:(?P<size{n}>{_either(_SIZE)}) )?"
        said = rf"{size}(?:(?P<color{n}>{_either(_COLOR)}) )?(?P<shape{n}>{_either(_SHAPE)})"
        return rf"(?:an (?=[aeiou])|a (?![aeiou])){said}(?: that is (?P<late{n}>{_either(_COLOR)}))?"

    between = rf"(?:{_either(scenes.JOINS)}| (?P<relation>{_either(_RELATION)}) )"
    several = rf"(?P<number>{_either(_NUMBER)}) (?:(?P<color0>{_either(_COLOR)}) )?"
    several += rf"(?P<shape0>{_either({**_SHAPE, **_PLURAL})})"
    body = rf"(?:{several}|{noun(1)}(?:{between}{noun(2)})?)"
    tail = [words.format(rf"(?P<bg{{n}}>{_either(_BACKGROUND)})") for words in scenes.BACKGROUND_WORDS]
    first, last = ("|".join(words.replace("{n}", f"{side}{i}") for i, words in enumerate(tail)) for side in "ab")
    prefix = rf"(?:{_either(set(scenes.PREFIXES) - {''})})?"
    return re.compile(rf"(?:(?:{first}), |{prefix}){body}(?: (?:{last}))?")


@cache
def _specs() -> frozenset[Spec]:
    return frozenset(all_specs())


@lru_cache(maxsize=100_000)
def parse(prompt: str) -> Spec | None:
    """The spec a prompt of this world describes, or None for any other text.

    The inverse of `scenes.wording`: case, a final full stop and repeated spaces do not matter, all else does.
    """
    match = _grammar().fullmatch(re.sub(" +", " ", prompt.strip(" ").lower()).removesuffix("."))
    if match is None:
        return None
    got = match.groupdict()
    backgrounds = [_BACKGROUND[word] for name, word in got.items() if name.startswith("bg") and word]
    if len(backgrounds) > 1:
        return None
    background = backgrounds[0] if backgrounds else None
    relation = None
    if got["number"]:
        count, said = _NUMBER[got["number"]], got["shape0"]
        shape = (_SHAPE if count == 1 else _PLURAL).get(said)
        if shape is None:
            return None
        kind, items = "counting", [Item(shape, _COLOR.get(got["color0"]), count)]
    else:
        if any(got[f"color{n}"] and got[f"late{n}"] for n in (1, 2)):
            return None
        items = [
            Item(_SHAPE[got[f"shape{n}"]], _COLOR.get(got[f"color{n}"] or got[f"late{n}"]))
            for n in (1, 2)
            if got[f"shape{n}"]
        ]
        relation = _RELATION[got["relation"]] if got["relation"] else None
        if relation:
            kind = "position"
            if relation not in scenes.RELATIONS:
                relation, items = scenes.OPPOSITE[relation], items[::-1]
        elif len(items) == 2:
            kind = "color_attr" if items[0].color else "two_object"
            items.sort(key=lambda item: item.shape)
        else:
            kind = "colors" if items[0].color else "single_object"
    if got["size2"]:
        return None
    spec = Spec(kind, tuple(items), relation, _SIZE.get(got["size1"]), background)
    return spec if spec in _specs() else None


# ------------------------------------------------------------------------------------------------------------ reading

# Limits, in RGB steps of 255 or in pixels: between what a decoder does to edges and what a person would not call right.
BACKGROUND_TOLERANCE = 40.0  # distance of a background from its name's colour
COLOR_TOLERANCE = 38.0  # distance of a thing's colour from its name's; two palette colours lie 90 apart, or more
DIFFERENT = 45.0  # distance from the background where a thing may begin; palette and backgrounds lie 99 apart, or more
SPECK = 6  # pixels that make no thing
# Squared error of coverage, as a share of the area, that a shape may have. Other shapes come near circles and squares
# (a pentagon to 0.038), and points wear off.
FIT = {"circle": 0.035, "square": 0.06, "triangle": 0.09, "star": 0.11, "cross": 0.09}
CLEARLY = 0.7  # and as a share of the next best shape's
BLUR = 1.6  # sigma whose softness is too much
GHOST = 0.75  # pixels half covered without being an edge, as a share of the root of the area
EXTENTS = (6.5, 19.0)  # smallest and largest half extent of a thing
LEFTOVER = 12.0  # largest mean over 5x5 pixels of what background and things do not explain
WAVER = 0.4  # the same within 3 pixels of an edge, as a share of the thing's contrast, on top: an edge may waver,
TINGE = 0.12  # but not take on another colour
NOISE = 16.0  # largest standard deviation of a pixel's channel, away from edges
DIRECTION = 0.25  # smallest share of the distance between two things that one is left of or above the other by
SIZE_BOUNDARY = 12.0  # half extent where small ends and large begins

_DRAWN = (6.5, 8.0, 10.0, 12.5, 15.5, 19.0)  # half extents that templates are drawn for
_FINE = 8  # template pixels a picture's pixel
_SOFT = (0.55, 1.1)  # Gaussian blur of the templates, in pixels; the softer ones where the sharper do not do well
_PLAIN = 0.03  # squared error of a fit that needs no other
_BIAS = 0.0625  # pixels by which Pillow's polygons are larger than asked at scenes' scale of 4, beyond templates'


@dataclass(frozen=True)
class Seen:
    """One thing that a picture shows: centre and half extent in pixels, None for what is not clear."""

    shape: str | None
    color: str | None
    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `clear` where background and things explain all of it."""

    background: str | None
    things: tuple[Seen, ...]
    clear: bool


@dataclass(frozen=True)
class _Template:
    """A shape drawn large: its coverage, half extent, area, centroid relative to its centre, and most softness."""

    mask: np.ndarray
    r: float
    area: float
    dx: float
    dy: float
    soft: float


@cache
def _templates(blur: float) -> dict[str, list[_Template]]:
    """Every shape in every extent, with edges of this Gaussian blur in pixels."""
    found: dict[str, list[_Template]] = {}
    for shape in SHAPES:
        for r in _DRAWN:
            half = int(np.ceil(r * 1.2 + 4)) * _FINE
            image = Image.new("L", (2 * half, 2 * half))
            ImageDraw.Draw(image).polygon(scenes.shape_polygon(shape, half, half, r * _FINE), fill=255)
            sharp = ndimage.uniform_filter(np.asarray(image) / 255.0, _FINE)
            mask = ndimage.gaussian_filter(sharp, blur * _FINE).astype(np.float32)
            softest = ndimage.gaussian_filter(sharp, BLUR * _FINE)
            at = (np.arange(2 * half) + 0.5 - half) / _FINE
            total = mask.sum()
            found.setdefault(shape, []).append(
                _Template(
                    mask,
                    r,
                    float(total) / _FINE**2,
                    float(mask.sum(0) @ at / total),
                    float(mask.sum(1) @ at / total),
                    float((softest * (1 - softest)).sum()) / _FINE**2,
                )
            )
    return found


@dataclass(frozen=True)
class _Fit:
    """A shape laid over a region: its squared error a pixel of area, and how it lies."""

    error: float
    shape: str
    cx: float
    cy: float
    scale: float
    template: _Template
    laid: np.ndarray


@dataclass
class _Drawing:
    """The picture as it was understood so far: (64, 64) and (64, 64, 3), in steps of 255."""

    coverage: np.ndarray  # of each pixel by all things
    colors: np.ndarray
    ways: np.ndarray  # around each thing, the way from the background's colour to its own


def read(image: np.ndarray) -> Reading:
    """What a picture (64, 64, 3) in [0, 1] shows."""
    pixels = np.asarray(image, dtype=np.float64)
    whole = bool(np.isfinite(pixels).all())
    pixels = np.nan_to_num(pixels, nan=0.5).clip(0, 1) * 255.0
    ring = (pixels[:2], pixels[-2:], pixels[2:-2, :2], pixels[2:-2, -2:])
    back = np.median(np.concatenate([side.reshape(-1, 3) for side in ring]), axis=0)
    distance = np.sqrt(((pixels - back) ** 2).sum(-1))
    labels, _ = ndimage.label(distance > np.maximum(DIFFERENT, 0.4 * ndimage.maximum_filter(distance, 9)))
    drawing = _Drawing(np.zeros(labels.shape), np.tile(back, (*labels.shape, 1)), np.zeros_like(pixels))
    things = [
        _measure(pixels, back, labels, label, found, drawing)
        for label, found in enumerate(ndimage.find_objects(labels), 1)
        if (labels[found] == label).sum() > SPECK
    ]
    return Reading(_named(back, BACKGROUNDS), tuple(things), whole and _explained(pixels, drawing))


def _measure(
    pixels: np.ndarray,
    back: np.ndarray,
    labels: np.ndarray,
    label: int,
    found: tuple[slice, slice],
    drawing: _Drawing,
) -> Seen:
    """One region, and its best shape laid into the drawing."""
    here = rows, columns = (
        slice(max(found[0].start - 3, 0), min(found[0].stop + 3, SIZE)),
        slice(max(found[1].start - 3, 0), min(found[1].stop + 3, SIZE)),
    )
    window, away = labels[here], pixels[here] - back
    own = window == label
    for size in (5, 3, 1):
        core = ndimage.minimum_filter(own, size)
        if core.sum() >= 5:
            break
    way = np.median(away[core], axis=0)
    if way @ way < DIFFERENT**2:  # a region without a colour of its own
        return Seen(None, None, (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2, 0.0)
    others = ndimage.maximum_filter((window != 0) & ~own, 3)
    # How far each pixel lies on the way from the background's colour to the thing's. Its sum and centroid are those of
    # the shape however soft the edges are.
    cover = np.where(others, 0.0, (away @ way / (way @ way)).clip(-0.5, 1.5))
    fits = _fits(cover, rows, columns, _SOFT[0])
    if fits[0].error > min(_PLAIN, CLEARLY * fits[1].error):
        fits = min(fits, _fits(cover, rows, columns, _SOFT[1]), key=lambda f: f[0].error)
    best, second = fits[:2]
    r = best.template.r * best.scale - _BIAS
    slope = np.hypot(*np.gradient(cover))
    plateau = (np.abs(cover - 0.5) < 0.3) & (slope < 0.1)
    good = (
        best.error < min(FIT[best.shape], CLEARLY * second.error)
        and float((cover * (1 - cover)).clip(0).sum()) < best.template.soft * best.scale
        and plateau.sum() < GHOST * max(cover.sum(), 1.0) ** 0.5
        and EXTENTS[0] <= r <= EXTENTS[1]
    )
    drawing.coverage[here] += best.laid
    drawing.colors[here] += best.laid[..., None] * way
    drawing.ways[here] = way
    return Seen(best.shape if good else None, _named(back + way, COLORS), best.cx, best.cy, r)


def _fits(cover: np.ndarray, rows: slice, columns: slice, blur: float) -> list[_Fit]:
    """Each shape of the window's area and centroid laid over it, best first."""
    area = max(float(cover.sum()), 1.0)
    x = float(cover.sum(0) @ np.arange(columns.start + 0.5, columns.stop)) / area
    y = float(cover.sum(1) @ np.arange(rows.start + 0.5, rows.stop)) / area
    fits = []
    for shape, templates in _templates(blur).items():
        r = templates[2].r * (area / templates[2].area) ** 0.5
        template = min(templates, key=lambda t: abs(t.r - r))
        scale = (area / template.area) ** 0.5
        cx, cy = x - template.dx * scale, y - template.dy * scale
        laid = _lay(template, cx, cy, scale, rows, columns)
        fits.append(_Fit(float(((cover - laid) ** 2).sum()) / area, shape, cx, cy, scale, template, laid))
    return sorted(fits, key=lambda fit: fit.error)


def _lay(template: _Template, cx: float, cy: float, scale: float, rows: slice, columns: slice) -> np.ndarray:
    """Coverage of a window's pixels by the template around (cx, cy), `scale` times as large as it was drawn."""
    size = len(template.mask)
    y, x = (
        ((np.arange(s.start + 0.5, s.stop) - centre) * (_FINE / scale) + size / 2).astype(int).clip(0, size - 1)
        for s, centre in ((rows, cy), (columns, cx))
    )
    return template.mask[y[:, None], x]


def _explained(pixels: np.ndarray, drawing: _Drawing) -> bool:
    """Whether the picture is what was drawn again: nothing left over, few pixels' noise aside."""
    rest = pixels - drawing.colors
    edge = ndimage.maximum_filter(drawing.coverage, 7) - ndimage.minimum_filter(drawing.coverage, 7) > 0.05
    contrast = np.sqrt((drawing.ways**2).sum(-1)) * edge
    direction = drawing.ways * (edge / np.maximum(contrast, 1.0))[..., None]
    left = ndimage.uniform_filter(rest, (5, 5, 1))
    along = (left * direction).sum(-1)
    across = np.sqrt(((left - along[..., None] * direction) ** 2).sum(-1))
    return bool(
        not edge.all()
        and np.sqrt((rest[~edge] ** 2).mean()) < NOISE
        and (np.abs(along) < LEFTOVER + WAVER * contrast).all()
        and (across < LEFTOVER + TINGE * contrast).all()
    )


def _named(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    tolerance = COLOR_TOLERANCE if palette is COLORS else BACKGROUND_TOLERANCE
    name, value = min(palette.items(), key=lambda entry: float(((color - entry[1]) ** 2).sum()))
    return name if float(((color - value) ** 2).sum()) < tolerance**2 else None


# ------------------------------------------------------------------------------------------------------------ judging


def judge(image: np.ndarray, spec: Spec) -> dict[str, bool]:
    """Whether a picture (64, 64, 3) in [0, 1] meets each requirement of `spec`; all of them must hold to be right.

    shape, color, count, background and clear always; position and size where the spec names them. What it leaves free
    must still be of this world: every thing a clear shape in a palette colour, on a plain background of a known one.
    """
    return verdict(read(image), spec)


def verdict(seen: Reading, spec: Spec) -> dict[str, bool]:
    """The same for a picture that was read."""
    things, items = seen.things, spec.items

    def met(item: Item, thing: Seen) -> bool:
        return (
            thing.color is not None and item.color in (None, thing.color) and (not shape or item.shape == thing.shape)
        )

    shape = {thing.shape for thing in things} == {item.shape for item in items}
    asked = sum(item.count for item in items)
    if shape and len(things) == asked:
        shape = all(sum(thing.shape == item.shape for thing in things) == item.count for item in items)
    found = {
        "shape": shape,
        # Each colour on its own shape, where the shapes are right.
        "color": all(any(met(item, thing) for thing in things) for item in items)
        and all(any(met(item, thing) for item in items) for thing in things),
        "count": len(things) == asked,
        "background": seen.background is not None and spec.background in (None, seen.background),
        "clear": seen.clear,
    }
    if spec.size is not None:
        found["size"] = len(things) == 1 and (things[0].r > SIZE_BOUNDARY) == (spec.size == "large")
    if spec.relation is not None:
        first, second = ([t for t in things if t.shape == item.shape] for item in items)
        found["position"] = bool(first and second) and all(
            _before(a, b, spec.relation) for a, b in itertools.product(first, second)
        )
    return found


def _before(a: Seen, b: Seen, relation: str) -> bool:
    """Whether a is left of (or above) b, as GenEval decides it: beyond a tenth of their sizes, and not by the way."""
    dx, dy = b.cx - a.cx, b.cy - a.cy
    along = dx if relation == "left" else dy
    return along - 0.2 * (a.r + b.r) > DIRECTION * (dx**2 + dy**2) ** 0.5


def judge_batch(images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """(batch, 3, 64, 64) in [0, 1] -> (batch,): 1.0 right, 0.0 wrong, NaN where the prompt is not of this world."""
    result = np.full(len(prompts), np.nan)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        spec = parse(prompt)
        if spec is not None:
            result[i] = float(all(judge(image.transpose(1, 2, 0), spec).values()))
    return result
