"""The held-out judge: reads a picture with plain image processing and says whether it shows what the prompt asks.

No label of it trains anything.
"""

import re
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from pahi.tiny import scenes
from pahi.tiny.scenes import BACKGROUNDS, COLORS, SHAPES, SIZE, Spec

_CANONICAL = {synonym: word for word, synonyms in scenes.SYNONYMS.items() for synonym in synonyms}
_PLACE_OF = {words: place for place, all_words in scenes.PLACE_WORDS.items() for words in all_words}
_TEMPLATE = 32


def parse(prompt: str) -> Spec | None:
    """The spec a prompt of this world describes, or None for any other text."""

    def either(words: object) -> str:
        return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]

    def spoken(words: object) -> list[str]:
        return [s for w in words for s in scenes.SYNONYMS.get(w, (w,))]  # type: ignore[attr-defined]

    place, background = either(_PLACE_OF), either(spoken(BACKGROUNDS))
    tail = rf"(?: (?P<place{{n}}>{place})| (?:on|against|with) a (?P<bg{{n}}>{background}) background)?"
    pattern = (
        r"(?:an? (?:photo|picture|image|drawing) of )?an?"
        rf"(?: (?P<size>{either(spoken(scenes.SIZES))}))?"
        rf"(?: (?P<color>{either(spoken(COLORS))}))?"
        rf" (?P<shape>{either(SHAPES)})" + tail.format(n=1) + tail.format(n=2)
    )
    match = re.fullmatch(pattern, prompt.strip().lower().rstrip("."))
    if match is None:
        return None
    got = match.groupdict()
    if (got["place1"] and got["place2"]) or (got["bg1"] and got["bg2"]):
        return None

    def canonical(word: str | None) -> str | None:
        return _CANONICAL.get(word, word) if word else None

    where = got["place1"] or got["place2"]
    return Spec(
        shape=got["shape"],
        color=canonical(got["color"]),
        size=canonical(got["size"]),
        background=canonical(got["bg1"] or got["bg2"]),
        place=_PLACE_OF[where] if where else None,
    )


@cache
def _templates() -> dict[str, np.ndarray]:
    masks = {}
    for shape in SHAPES:
        image = Image.new("L", (_TEMPLATE * 8, _TEMPLATE * 8))
        half = _TEMPLATE * 4
        ImageDraw.Draw(image).polygon(scenes.shape_polygon(shape, half, half, half), fill=255)
        masks[shape] = np.asarray(image.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BOX)) / 255.0
    return masks


def read(image: np.ndarray) -> dict[str, object]:
    """What a picture shows: image (64, 64, 3) in [0, 1] -> shape, color, size, background, cx, cy, iou.

    Anything that is not one clear shape on a plain background reads as None in the attributes concerned.
    """
    seen: dict[str, object] = dict.fromkeys(("shape", "color", "size", "background", "cx", "cy", "iou"))
    pixels = np.asarray(image, dtype=np.float64) * 255.0
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    back = np.median(border, axis=0)
    name, distance = _nearest(back, BACKGROUNDS)
    if distance < 45:
        seen["background"] = name
    away = np.linalg.norm(pixels - back, axis=-1)
    core = away > 0.7 * np.quantile(away, 0.98)
    if away.max() < 40 or core.sum() < 20:
        return seen
    front = np.median(pixels[core], axis=0)
    name, distance = _nearest(front, COLORS)
    if distance < 55:
        seen["color"] = name
    # Coverage of each pixel by the shape: how far it lies on the way from background to front colour.
    way = front - back
    coverage = ((pixels - back) @ way / (way @ way)).clip(0, 1)
    labels, count = ndimage.label(coverage > 0.5)
    if count == 0:
        return seen
    areas = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
    if areas.max() < 0.85 * areas.sum():
        return seen
    rows, columns = ndimage.find_objects((labels == areas.argmax() + 1).astype(int))[0]
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if not 0.72 < width / height < 1.39 or width * height < 100:
        return seen
    seen["cx"], seen["cy"] = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
    seen["size"] = "large" if (width + height) / 4 > 13 else "small"
    crop = Image.fromarray((coverage[rows, columns] * 255).astype(np.uint8))
    mask = np.asarray(crop.resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR)) / 255.0
    overlap = {
        shape: np.minimum(mask, template).sum() / np.maximum(mask, template).sum()
        for shape, template in _templates().items()
    }
    best = max(overlap, key=lambda shape: overlap[shape])
    seen["iou"] = float(overlap[best])
    if overlap[best] > 0.75:
        seen["shape"] = best
    return seen


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    distances = {name: float(np.linalg.norm(color - np.array(value))) for name, value in palette.items()}
    best = min(distances, key=lambda name: distances[name])
    return best, distances[best]


def judge(image: np.ndarray, spec: Spec) -> dict[str, bool]:
    """Whether a picture (64, 64, 3) in [0, 1] meets each requirement of `spec`; all of them must hold to be right."""
    seen = read(image)
    verdict = {"shape": seen["shape"] == spec.shape}
    for key in ("color", "size", "background"):
        if getattr(spec, key) is not None:
            verdict[key] = seen[key] == getattr(spec, key)
    if spec.place is not None:
        where = seen["cx"] if spec.place in ("left", "right") else seen["cy"]
        middle = SIZE / 2
        near = isinstance(where, float) and (
            where < middle - 1.5 if spec.place in ("left", "top") else where > middle + 1.5
        )
        verdict["position"] = near
    # An unnamed colour or background must still be one of this world: a smear of two is not right.
    verdict.setdefault("color", seen["color"] is not None)
    verdict.setdefault("background", seen["background"] is not None)
    return verdict


def judge_batch(images: np.ndarray, prompts: list[str]) -> np.ndarray:
    """(batch, 3, 64, 64) in [0, 1] -> (batch,): 1.0 right, 0.0 wrong, NaN where the prompt is not of this world."""
    result = np.full(len(prompts), np.nan)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        spec = parse(prompt)
        if spec is not None:
            result[i] = float(all(judge(image.transpose(1, 2, 0), spec).values()))
    return result
