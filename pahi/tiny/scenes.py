"""Scenes of one coloured shape, 64x64, and the prompts that describe them.

A `Spec` is what a prompt says; attributes it leaves out are free. Training, validation and test prompts are split by
spec, so that no wording of a test spec is ever seen in training, by any model of the tiny world.
"""

import hashlib
import itertools
import math
import random
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (145, 50, 185),
    "orange": (245, 135, 25),
    "pink": (245, 135, 195),
    "cyan": (50, 200, 220),
}
BACKGROUNDS = {"white": (242, 242, 242), "black": (18, 18, 18), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
SIZES = {"small": (8.0, 11.0), "large": (15.0, 18.0)}  # half extent in pixels
PLACES = ("left", "right", "top", "bottom")

SYNONYMS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "gray": ("gray", "grey"),
    "purple": ("purple", "violet"),
}
PREFIXES = ("", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ")
PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
}
BACKGROUND_WORDS = ("on a {} background", "against a {} background", "with a {} background")


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for; None is left free."""

    shape: str
    color: str | None = None
    size: str | None = None
    background: str | None = None
    place: str | None = None

    @property
    def kind(self) -> str:
        """The prompt's kind: single_object, color, size, background, position or composition."""
        extra = [
            name
            for name, value in (("size", self.size), ("background", self.background), ("position", self.place))
            if value is not None
        ]
        if len(extra) > 1:
            return "composition"
        if extra:
            return extra[0]
        return "color" if self.color else "single_object"

    @property
    def split(self) -> str:
        """train, validation or test, by a hash of the spec. The six bare shapes are always training prompts."""
        if self.kind == "single_object":
            return "train"
        digest = hashlib.sha256(repr(astuple(self)).encode()).digest()
        bucket = int.from_bytes(digest[:4], "big") % 100
        return "test" if bucket < 20 else "validation" if bucket < 30 else "train"


def all_specs() -> list[Spec]:
    """Every spec of this world, in a fixed order."""
    specs = [Spec(shape) for shape in SHAPES]
    for shape, color in itertools.product(SHAPES, COLORS):
        specs.append(Spec(shape, color))
        specs += [Spec(shape, color, size=s) for s in SIZES]
        specs += [Spec(shape, color, background=b) for b in BACKGROUNDS]
        specs += [Spec(shape, color, place=p) for p in PLACES]
        specs += [Spec(shape, color, size=s, background=b) for s in SIZES for b in BACKGROUNDS]
        specs += [Spec(shape, color, background=b, place=p) for b in BACKGROUNDS for p in PLACES]
    return specs


def wording(spec: Spec, rng: random.Random) -> str:
    """One of the many ways to say a spec."""

    def say(word: str) -> str:
        return rng.choice(SYNONYMS.get(word, (word,)))

    words = [say(w) for w in (spec.size, spec.color, spec.shape) if w is not None]
    article = "an" if words[0][0] in "aeiou" else "a"
    text = rng.choice(PREFIXES) + " ".join([article, *words])
    tail = []
    if spec.place is not None:
        tail.append(rng.choice(PLACE_WORDS[spec.place]))
    if spec.background is not None:
        tail.append(rng.choice(BACKGROUND_WORDS).format(say(spec.background)))
    rng.shuffle(tail)
    return " ".join([text, *tail])


def shape_polygon(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """The outline, scaled so that its bounding box is 2r x 2r around (cx, cy)."""
    if shape == "circle":
        points = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 96, endpoint=False)]
    elif shape == "square":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        points = [(0, -1), (1, 1), (-1, 1)]
    elif shape == "diamond":
        points = [(0, -1), (1, 0), (0, 1), (-1, 0)]
    elif shape == "cross":
        t = 0.34
        points = [(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t), (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t)]
        points.append((-t, -t))
    elif shape == "star":
        points = []
        for i in range(10):
            radius = 1.0 if i % 2 == 0 else 0.42
            a = -math.pi / 2 + i * math.pi / 5
            points.append((radius * math.cos(a), radius * math.sin(a)))
    else:
        raise ValueError(f"unknown shape {shape!r}")
    xs, ys = zip(*points, strict=True)
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    return [
        (cx + r * (2 * (x - x0) / (x1 - x0) - 1), cy + r * (2 * (y - y0) / (y1 - y0) - 1))
        for x, y in points
    ]  # fmt: skip


def render(spec: Spec, rng: random.Random) -> Image.Image:
    """A 64x64 picture that shows `spec`; what it leaves free is drawn at random."""
    r = rng.uniform(*SIZES[spec.size or rng.choice(list(SIZES))])
    low, high = r + 2, SIZE - r - 2
    middle = SIZE / 2
    cx, cy = rng.uniform(low, high), rng.uniform(low, high)
    if spec.place in ("left", "right"):
        near = rng.uniform(low, min(middle - 5, high))
        cx = near if spec.place == "left" else SIZE - near
    if spec.place in ("top", "bottom"):
        near = rng.uniform(low, min(middle - 5, high))
        cy = near if spec.place == "top" else SIZE - near
    color = COLORS[spec.color or rng.choice(list(COLORS))]
    background = BACKGROUNDS[spec.background or rng.choice(list(BACKGROUNDS))]
    return draw(spec.shape, cx, cy, r, color, background)


def draw(
    shape: str, cx: float, cy: float, r: float, color: tuple[int, int, int], background: tuple[int, int, int]
) -> Image.Image:
    """One anti-aliased shape."""
    scale = 4
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), background)
    outline = [(x * scale, y * scale) for x, y in shape_polygon(shape, cx, cy, r)]
    ImageDraw.Draw(image).polygon(outline, fill=color)
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def corrupt(spec: Spec, rng: random.Random) -> Spec:
    """A full spec that differs from what `spec` asks in at least one named attribute."""
    named = [k for k in ("shape", "color", "size", "background", "place") if getattr(spec, k) is not None]
    values = {
        "shape": SHAPES,
        "color": tuple(COLORS),
        "size": tuple(SIZES),
        "background": tuple(BACKGROUNDS),
        "place": {"left": ("right",), "right": ("left",), "top": ("bottom",), "bottom": ("top",)}.get(
            spec.place or "", ()
        ),
    }
    key = rng.choice(named)
    changed = {k: getattr(spec, k) for k in ("shape", "color", "size", "background", "place")}
    changed[key] = rng.choice([v for v in values[key] if v != changed[key]])
    return Spec(**changed)
