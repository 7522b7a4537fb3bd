"""Scenes of one to four coloured shapes, 64x64, and the prompts that describe them: GenEval's six kinds.

A `Spec` is what a prompt says; what it leaves out is free. Training, validation and test prompts are split by spec, so
that no wording of a test spec is ever seen in training, by any model of the small world.
"""

import hashlib
import itertools
import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
COLORS = {
    "red": (222, 38, 38),
    "orange": (242, 124, 20),
    "yellow": (245, 218, 50),
    "green": (38, 160, 62),
    "blue": (40, 84, 222),
    "purple": (142, 48, 184),
    "pink": (246, 138, 194),
}
BACKGROUNDS = {"white": (242, 242, 242), "gray": (128, 128, 128), "black": (18, 18, 18)}
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Places and sizes are few, and fixed: what a prompt leaves free is a choice among some dozens of pictures, and a small
# network spends its parameters on what is drawn, not on where its outline runs between two pixels.
SIZES = {"small": 9.0, "large": 15.0}  # half extent in pixels of an object alone in its scene
SLOT_SIZE = 10.5  # half extent of an object that shares its scene
# Where things lie, in quarters of the picture's width and height: (2, 2) is its middle.
ROW, COLUMN = ((1, 2), (3, 2)), ((2, 1), (2, 3))
QUARTERS = ((1, 1), (3, 1), (1, 3), (3, 3))
LAYOUTS: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = {  # of several alike, by their number
    2: (ROW, COLUMN),
    3: (((2, 1), (1, 3), (3, 3)), ((1, 1), (3, 1), (2, 3))),
    4: (QUARTERS,),
}
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left", "above")  # of the first item to the second; right and below are the same scenes, said otherwise


@dataclass(frozen=True)
class Item:
    """One thing that a prompt names; count > 1 means several alike."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Spec:
    """What a prompt asks for; None is left free.

    Two items without a relation are in the order of their shapes' names, so that one scene has one spec.
    """

    kind: str  # one of KINDS
    items: tuple[Item, ...]
    relation: str | None = None  # one of RELATIONS
    size: str | None = None  # one of SIZES, for an object alone
    background: str | None = None

    @property
    def key(self) -> str:
        """The spec in writing: `position:star+circle/left/-/white`, with - for what is left free."""
        items = "+".join(
            (f"{i.count}x" if self.kind == "counting" else "") + (f"{i.color} " if i.color else "") + i.shape
            for i in self.items
        )
        return f"{self.kind}:{items}/{self.relation or '-'}/{self.size or '-'}/{self.background or '-'}"

    @property
    def split(self) -> str:
        """train (70%), validation (10%) or test (20%), by a hash of the spec."""
        digest = hashlib.sha256(self.key.encode()).digest()
        bucket = int.from_bytes(digest[:4], "big") % 100
        return "test" if bucket < 20 else "validation" if bucket < 30 else "train"


@dataclass(frozen=True)
class Thing:
    """One shape of a scene: centre and half extent in pixels."""

    shape: str
    color: str
    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Place:
    """Where a shape goes: centre and half extent in pixels."""

    cx: float
    cy: float
    r: float


@dataclass(frozen=True)
class Scene:
    """What is drawn."""

    things: tuple[Thing, ...]
    background: str


def all_specs() -> list[Spec]:
    """Every spec of this world, in a fixed order."""
    backgrounds: tuple[str | None, ...] = (None, *BACKGROUNDS)
    sizes: tuple[str | None, ...] = (None, *SIZES)
    specs = []
    for background in backgrounds:
        for shape in SHAPES:
            for size in sizes:
                specs.append(Spec("single_object", (Item(shape),), size=size, background=background))
                specs += [Spec("colors", (Item(shape, color),), size=size, background=background) for color in COLORS]
            specs += [
                Spec("counting", (Item(shape, color, count),), background=background)
                for color in (None, *COLORS)
                for count in (1, 2, 3, 4)
            ]
        for a, b in itertools.permutations(SHAPES, 2):
            specs += [Spec("position", (Item(a), Item(b)), relation=r, background=background) for r in RELATIONS]
        for a, b in itertools.combinations(sorted(SHAPES), 2):
            specs.append(Spec("two_object", (Item(a), Item(b)), background=background))
            specs += [
                Spec("color_attr", (Item(a, c), Item(b, d)), background=background)
                for c, d in itertools.permutations(COLORS, 2)
            ]
    return specs


# --------------------------------------------------------------------------------------------------------- the words

SYNONYMS = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "gray": ("gray", "grey"),
    "purple": ("purple", "violet"),
    "circle": ("circle", "circle", "disc"),
    "cross": ("cross", "cross", "plus"),
}
PLURALS = {"circle": "circles", "disc": "discs", "cross": "crosses", "plus": "pluses"}
PREFIXES = ("", "", "", "a photo of ", "a picture of ", "an image of ", "a drawing of ")
NUMBERS = {1: ("one", "a single", "exactly one"), 2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
BACKGROUND_WORDS = ("on a {} background", "against a {} background", "with a {} background")
JOINS = (" and ", " and ", " next to ", " with ")


def wording(spec: Spec, rng: random.Random) -> str:
    """One of the many ways to say a spec."""

    def say(word: str) -> str:
        return rng.choice(SYNONYMS.get(word, (word,)))

    def article(words: str) -> str:
        return ("an " if words[0] in "aeiou" else "a ") + words

    def noun(item: Item) -> str:
        word = say(item.shape)
        color, size = (say(item.color) if item.color else None), (say(spec.size) if spec.size else None)
        if item.count > 1:
            word = PLURALS.get(word, word + "s")
        if spec.kind == "counting":
            return " ".join(w for w in (rng.choice(NUMBERS[item.count]), color, word) if w)
        if color and rng.random() < 0.15:
            return f"{article(' '.join(w for w in (size, word) if w))} that is {color}"
        return article(" ".join(w for w in (size, color, word) if w))

    nouns = [noun(item) for item in spec.items]
    if spec.relation:
        relation = spec.relation
        if rng.random() < 0.5:
            relation, nouns = OPPOSITE[relation], nouns[::-1]
        body = f"{nouns[0]} {rng.choice(RELATION_WORDS[relation])} {nouns[1]}"
    else:
        if len(nouns) > 1:
            rng.shuffle(nouns)
        body = rng.choice(JOINS).join(nouns)
    if spec.background is None:
        return rng.choice(PREFIXES) + body
    tail = rng.choice(BACKGROUND_WORDS).format(say(spec.background))
    if rng.random() < 0.15:
        return f"{tail}, {body}"
    return f"{rng.choice(PREFIXES)}{body} {tail}"


# ------------------------------------------------------------------------------------------------------ the pictures


def layouts(spec: Spec) -> tuple[tuple[Place, ...], ...]:
    """Every way to lay out the things of `spec`, in the order of its items.

    A thing alone lies in the middle, and is small or large. Of two, one lies beside the other, or above it where the
    prompt says so. Two alike lie beside or above one another, three in a triangle, four in the quarters.
    """
    item = spec.items[0]
    ways: list[tuple[tuple[int, int], ...]]
    if len(spec.items) == 2:
        ways = [ROW if spec.relation == "left" else COLUMN] if spec.relation else [ROW, ROW[::-1]]
    elif item.count > 1:
        ways = list(LAYOUTS[item.count])
    else:
        sizes = [SIZES[spec.size]] if spec.size else list(SIZES.values())
        return tuple((Place(SIZE / 2, SIZE / 2, r),) for r in sizes)
    return tuple(tuple(Place(x * SIZE / 4, y * SIZE / 4, SLOT_SIZE) for x, y in way) for way in ways)


def show(spec: Spec, layout: tuple[Place, ...], colors: tuple[str, ...], background: str) -> Scene:
    """The scene of one of the layouts, with a colour for each item."""
    if len(spec.items) == 2:
        pairs = list(zip(spec.items, colors, layout, strict=True))
    else:
        pairs = [(spec.items[0], colors[0], place) for place in layout]
    things = [Thing(item.shape, color, place.cx, place.cy, place.r) for item, color, place in pairs]
    # In one order, so that a scene is one scene whatever spec it was drawn for.
    return Scene(tuple(sorted(things, key=lambda t: (t.shape, t.cy, t.cx))), background)


@lru_cache(maxsize=512)
def possible(spec: Spec) -> tuple[Scene, ...]:
    """Every scene that shows `spec`. Two things of different shapes have different colours."""
    backgrounds = (spec.background,) if spec.background else tuple(BACKGROUNDS)
    colors = itertools.product(*((item.color,) if item.color else tuple(COLORS) for item in spec.items))
    choices = itertools.product(layouts(spec), [c for c in colors if len(set(c)) == len(c)], backgrounds)
    return tuple(show(spec, layout, painted, background) for layout, painted, background in choices)


def compose(spec: Spec, rng: random.Random) -> Scene:
    """One of the scenes that show `spec`."""
    return rng.choice(possible(spec))


def shape_polygon(shape: str, cx: float, cy: float, r: float) -> list[tuple[float, float]]:
    """The outline, scaled so that its bounding box is 2r x 2r around (cx, cy)."""
    if shape == "circle":
        points = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 64, endpoint=False)]
    elif shape == "square":
        points = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif shape == "triangle":
        points = [(0, -1), (1, 1), (-1, 1)]
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


def draw(scene: Scene) -> Image.Image:
    """The scene as an anti-aliased 64x64 picture."""
    scale = 4
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        outline = [(x * scale, y * scale) for x, y in shape_polygon(thing.shape, thing.cx, thing.cy, thing.r)]
        pen.polygon(outline, fill=COLORS[thing.color])
    return image.reduce(scale)


def render(spec: Spec, rng: random.Random) -> Image.Image:
    """A 64x64 picture that shows `spec`."""
    return draw(compose(spec, rng))


# ----------------------------------------------------------------------------------------------------- what is wrong


def exchanged(spec: Spec) -> Spec:
    """The same words about the other thing: places exchanged where there is a relation, else colours.

    A spec of which this is no other one (a single item, or two without either) comes back as it is.
    """
    if len(spec.items) == 1:
        return spec
    a, b = spec.items
    return replace(spec, items=(b, a) if spec.relation else (replace(a, color=b.color), replace(b, color=a.color)))


def resized(spec: Spec) -> Spec:
    """A spec that names a size, with the other one."""
    return replace(spec, size="large" if spec.size == "small" else "small")


def alter(spec: Spec, rng: random.Random) -> tuple[str, Spec]:
    """A spec with one named attribute changed, and which: shape, color, count, position, swap, size or background.

    No scene of the new spec shows what the old one asks.
    """
    ways = ["shape"]
    if any(item.color for item in spec.items):
        ways.append("color")
    if spec.kind == "counting":
        ways.append("count")
    if spec.relation:
        ways.append("position")
    if spec.kind == "color_attr":
        ways.append("swap")
    ways += [name for name in ("size", "background") if getattr(spec, name)]
    way = rng.choice(ways)
    items = list(spec.items)
    if way == "shape":
        i = rng.randrange(len(items))
        items[i] = replace(items[i], shape=rng.choice([s for s in SHAPES if s not in {item.shape for item in items}]))
    elif way == "color":
        i = rng.choice([i for i, item in enumerate(items) if item.color])
        items[i] = replace(items[i], color=rng.choice([c for c in COLORS if c not in {item.color for item in items}]))
    elif way == "count":
        items[0] = replace(items[0], count=rng.choice([n for n in (1, 2, 3, 4) if n != items[0].count]))
    elif way in ("position", "swap"):
        return way, exchanged(spec)
    elif way == "size":
        return way, resized(spec)
    else:
        return way, replace(spec, background=rng.choice([b for b in BACKGROUNDS if b != spec.background]))
    if spec.relation is None:
        items.sort(key=lambda item: item.shape)  # as every spec's are: otherwise it would be of another key and split
    return way, replace(spec, items=tuple(items))
