"""The oracle says yes to right scenes and no to spoiled ones, and knows which prompts are not its own."""

import csv
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from pahi.tiny.oracle import judge, judge_batch, parse, read
from pahi.tiny.scenes import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    SHAPES,
    SIZE,
    Item,
    Scene,
    Spec,
    Thing,
    all_specs,
    alter,
    compose,
    draw,
    render,
    wording,
)

PER_KIND = 200
# The verdict that a change of each attribute must turn.
TURNED = {
    "shape": "shape",
    "color": "color",
    "swap": "color",
    "count": "count",
    "position": "position",
    "size": "size",
    "background": "background",
}


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image) / 255.0


def right(image: np.ndarray, spec: Spec) -> bool:
    return all(judge(image, spec).values())


def specs_of(kind: str, count: int, rng: random.Random) -> list[Spec]:
    return rng.choices([spec for spec in all_specs() if spec.kind == kind], k=count)


def soften(image: np.ndarray, sigma: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """What a decoder does to edges: a blur of sigma pixels, and noise in steps of 255."""
    blurred = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    return (blurred + rng.normal(0, noise / 255, image.shape)).clip(0, 1)


# ------------------------------------------------------------------------------------------------------ yes, and no


@pytest.mark.parametrize("kind", KINDS)
def test_right_scenes_pass_and_altered_ones_do_not(kind: str) -> None:
    rng = random.Random(f"oracle {kind}")
    accepted = rejected = 0
    for spec in specs_of(kind, PER_KIND, rng):
        accepted += right(array(render(spec, rng)), spec)
        rejected += not right(array(render(alter(spec, rng)[1], rng)), spec)
    assert accepted >= 0.99 * PER_KIND
    assert rejected >= 0.99 * PER_KIND


@pytest.mark.parametrize("kind", KINDS)
def test_soft_edges_are_forgiven_and_altered_ones_are_not(kind: str) -> None:
    rng, noise = random.Random(f"soft {kind}"), np.random.default_rng(0)
    accepted = rejected = 0
    for spec in specs_of(kind, PER_KIND, rng):
        picture, size = render(spec, rng), rng.randint(52, 84)
        again = picture.resize((size, size), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC)
        accepted += right(soften(array(again), rng.uniform(0.6, 0.8), 3, noise), spec)
        rejected += not right(soften(array(render(alter(spec, rng)[1], rng)), 0.7, 3, noise), spec)
    assert accepted >= 0.97 * PER_KIND
    assert rejected >= 0.99 * PER_KIND


@pytest.mark.parametrize("way", list(TURNED))
def test_each_attribute_alone_is_noticed(way: str) -> None:
    """And named: the verdict on what was changed falls, and, the shapes being right, no other."""
    rng, noticed, tried = random.Random(f"way {way}"), 0, 0
    specs = all_specs()
    while tried < 150:
        spec = rng.choice(specs)
        changed, other = alter(spec, rng)
        if changed == way:
            tried += 1
            fallen = {name for name, holds in judge(array(render(other, rng)), spec).items() if not holds}
            noticed += fallen == {TURNED[way]} if way != "shape" else "shape" in fallen <= {"shape", "position"}
    assert noticed >= 149


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_drawn(kind: str) -> None:
    rng = random.Random(f"read {kind}")
    for spec in specs_of(kind, 60, rng):
        scene = compose(spec, rng)
        seen = read(array(draw(scene)))
        assert seen.clear and seen.background == scene.background and len(seen.things) == len(scene.things)
        for thing in scene.things:
            nearest = min(seen.things, key=lambda t: abs(t.cx - thing.cx) + abs(t.cy - thing.cy))
            assert (nearest.shape, nearest.color) == (thing.shape, thing.color)
            measured, drawn = (nearest.cx, nearest.cy, nearest.r), (thing.cx, thing.cy, thing.r)
            np.testing.assert_allclose(measured, drawn, atol=0.35)


def test_a_mirror_turns_left_and_right_alone() -> None:
    """Every shape is its own mirror image; upside down, above and below turn too, and triangles and stars fall over."""
    rng = random.Random("mirror")
    for spec in rng.sample(all_specs(), 200):
        picture = array(render(spec, rng))
        flipped = replace(spec, items=spec.items[::-1]) if spec.relation == "left" else spec
        assert right(picture[:, ::-1], flipped)
        assert right(picture[:, ::-1], spec) == (spec.relation != "left")
        upright = any(item.shape in ("triangle", "star") for item in spec.items)
        over = replace(spec, items=spec.items[::-1]) if spec.relation == "above" else spec
        assert right(picture[::-1], over) != upright


def test_what_is_free_may_be_anything_of_this_world() -> None:
    """Colours, background, size and place where the prompt names none: two things may share a colour, and three not."""
    for background in BACKGROUNDS:
        for one, other in zip(COLORS, [*list(COLORS)[1:], "red"], strict=True):
            things = (Thing("star", one, 16, 18, 11), Thing("circle", other, 46, 47, 10))
            picture = array(draw(Scene(things, background)))
            assert right(picture, Spec("two_object", (Item("circle"), Item("star"))))
            assert right(picture, Spec("position", (Item("star"), Item("circle")), "left"))
            assert right(picture, Spec("position", (Item("star"), Item("circle")), "above"))
            assert right(picture, Spec("color_attr", (Item("circle", other), Item("star", one))))
            assert not right(picture, Spec("two_object", (Item("circle"), Item("star")), background="none"))
            same = tuple(replace(thing, color=one) for thing in things)
            assert right(array(draw(Scene(same, background))), Spec("two_object", (Item("circle"), Item("star"))))
            crosses = (*(replace(t, shape="cross") for t in things), Thing("cross", "blue", 45, 15, 9))
            picture = array(draw(Scene(crosses, background)))
            assert right(picture, Spec("counting", (Item("cross", count=3),)))
            assert not right(picture, Spec("counting", (Item("cross", "blue", 3),)))


def test_beside_is_not_above() -> None:
    """Two things in one row are neither above the other, however they shake; nor is one inside the other left of it."""
    for shake in (-3, 0, 3):
        picture = array(
            draw(Scene((Thing("star", "red", 15, 32, 10), Thing("square", "blue", 48, 32 + shake, 10)), "gray"))
        )
        items = (Item("star"), Item("square"))
        assert right(picture, Spec("position", items, "left"))
        for wrong in (Spec("position", items, "above"), Spec("position", items[::-1], "above")):
            assert [k for k, holds in judge(picture, wrong).items() if not holds] == ["position"]


# -------------------------------------------------------------------------------------- what a person would call right


def test_small_damage_is_forgiven() -> None:
    """Each thing a little off its colour, uneven light, noise, an edge that wavers."""
    rng, noise = random.Random("damage"), np.random.default_rng(1)
    kept = Counter[str]()
    for spec in rng.choices(all_specs(), k=150):
        picture = array(render(spec, rng))
        kept["noise"] += right(soften(picture, 0, 8, noise), spec)
        kept["soft"] += right(soften(picture, 1.1, 2, noise), spec)
        tint = noise.uniform(-10, 10, 3) / 255
        kept["tint"] += right((picture + tint).clip(0, 1), spec)
        light = np.linspace(-6, 6, SIZE)[:, None, None] / 255
        kept["light"] += right((picture + light).clip(0, 1), spec)
        shift = ndimage.gaussian_filter(noise.normal(0, 1, (2, SIZE, SIZE)), (0, 3, 3)) * 5
        y, x = np.mgrid[:SIZE, :SIZE] + shift
        waved = np.stack(
            [ndimage.map_coordinates(picture[..., c], (y, x), order=1, mode="nearest") for c in range(3)], -1
        )
        kept["wave"] += right(waved, spec)
        squeezed = np.broadcast_to(picture[0, 0], picture.shape).copy()
        squeezed[3:61] = array(Image.fromarray((picture * 255).astype(np.uint8)).resize((SIZE, 58)))
        kept["squeezed"] += right(squeezed, spec)
    assert all(count >= 0.95 * 150 for count in kept.values()), kept


# ----------------------------------------------------------------------------------------- what nobody would call right


def spoiled(name: str, spec: Spec, rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    """A right picture of `spec`, spoiled so that nobody would call it right any more."""
    scene = compose(spec, rng)
    picture = array(draw(scene))
    back = picture[0, 0]
    thing = rng.choice(scene.things)
    low, high = (np.array([thing.cy, thing.cx]) - thing.r).astype(int), np.array([thing.cy, thing.cx]) + thing.r + 1
    if name == "blank":
        return np.broadcast_to(back, picture.shape)
    if name == "noise only":
        return noise.random(picture.shape)
    if name == "heavy noise":
        return soften(picture, 0, 30, noise)
    if name == "blur":
        return soften(picture, rng.uniform(2.5, 5), 0, noise)
    if name == "coarse":
        return array(draw(scene).resize((10, 10), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    if name == "pale":
        return back + rng.uniform(0.2, 0.6) * (picture - back)
    if name == "ghost of another":
        share = rng.uniform(0.3, 0.7)
        return share * picture + (1 - share) * array(render(alter(spec, rng)[1], rng))
    if name == "ghost of itself":
        shift = rng.choice([(0, 6), (6, 0), (-6, 0), (0, -6), (5, 5), (-5, 5)])
        return 0.5 * picture + 0.5 * ndimage.shift(picture, (*shift, 0), order=1, mode="nearest")
    if name == "half drawn":
        half = picture.copy()
        middle = int(thing.cy), int(thing.cx)
        rows, columns = slice(low[0], int(high[0]) + 1), slice(low[1], int(high[1]) + 1)
        # The upper half of a triangle is a triangle.
        sides = [(slice(middle[0], rows.stop), columns), (rows, slice(middle[1], columns.stop))]
        part = sides[1] if thing.shape == "triangle" else rng.choice(sides)
        half[part] = back
        return half
    if name == "hollow":
        outline = Scene((replace(thing, r=0.7 * thing.r),), scene.background)
        inside = (np.abs(array(draw(outline)) - back) > 0.1).any(-1)
        return np.where(inside[..., None], back, picture)
    if name == "two colours":
        painted = picture.copy()
        own = np.abs(picture - back).sum(-1) > 0.2
        own[: int(thing.cy)] = False
        painted[own] = np.array(COLORS[rng.choice([c for c in COLORS if c != thing.color])]) / 255
        return painted
    if name == "one more, faint":
        other = _elsewhere(scene, rng, 8.5)
        return picture + 0.25 * (array(draw(Scene((other,), scene.background))) - back)
    if name == "one more, small":
        other = _elsewhere(scene, rng, 4.0)
        return array(draw(replace(scene, things=(*scene.things, other))))
    if name == "one more":
        return array(draw(replace(scene, things=(*scene.things, _elsewhere(scene, rng, 8.5)))))
    if name == "one less":
        return array(draw(replace(scene, things=tuple(t for t in scene.things if t != thing))))
    if name == "cut off":
        aside = replace(thing, cx=rng.choice([-0.1, 0.1]) * thing.r + rng.choice([0, SIZE]))
        return array(draw(replace(scene, things=tuple(aside if t == thing else t for t in scene.things))))
    if name == "scribbled on":
        image = draw(scene)
        ends = [(rng.choice([5, 59]), rng.randrange(5, 59)), (32, rng.randrange(5, 59))]
        ImageDraw.Draw(image).line(ends, fill=COLORS[rng.choice([c for c in COLORS if c != thing.color])], width=3)
        return array(image)
    if name == "striped background":
        stripes = (np.arange(SIZE) // 8 % 2)[:, None, None] * (0.12 if back[0] < 0.3 else -0.12)
        return np.where((np.abs(picture - back) < 0.02).all(-1, keepdims=True), picture + stripes, picture)
    if name == "two backgrounds":
        other = np.array(BACKGROUNDS[rng.choice([b for b in BACKGROUNDS if b != scene.background])]) / 255
        edge = (np.abs(picture - back) < 0.02).all(-1)
        edge[:, : SIZE // 2] = False
        return np.where(edge[..., None], other, picture)
    if name == "negative":
        return 1 - picture
    if name == "foreign background":
        other = np.array(rng.choice([(70, 70, 70), (185, 185, 185), (120, 90, 60), (90, 120, 200)])) / 255
        cover = np.abs(picture - back).sum(-1, keepdims=True) / np.abs(picture - back).sum(-1).max()
        return cover * picture + (1 - cover) * other
    if name == "grainy background":
        flat = (np.abs(picture - back) < 0.02).all(-1, keepdims=True)
        return np.where(flat, 0.5 + (back - 0.5) * 0.85 + noise.normal(0, 0.08, picture.shape), picture)
    if name in ("bitten", "bumped"):
        # Where it is widest, on the right, and six pixels square; out of a star's body, whose tips are thin.
        across, down = {"triangle": (1.0, 0.9), "star": (1.0, -0.24)}.get(thing.shape, (1.0, 0.0))
        if name == "bitten" and thing.shape == "star":
            across, down = 0.5, 0.0
        x, y = int(thing.cx + across * thing.r), int(thing.cy + down * thing.r)
        other = picture.copy()
        if name == "bumped":
            other[y - 3 : y + 3, x : x + 6] = np.array(COLORS[thing.color]) / 255
        else:
            other[y - 3 : y + 3, x - 6 : x] = back
        return other
    if name == "rimmed":
        rim = picture.copy()
        part = slice(low[0], int(high[0]) + 1), slice(int(thing.cx) + int(0.3 * thing.r), int(high[1]) + 1)
        tint = np.array(COLORS[rng.choice([c for c in COLORS if c != thing.color])]) / 255
        rim[part] = np.where((np.abs(picture[part] - back) > 0.1).any(-1, keepdims=True), tint, picture[part])
        return rim
    if name == "foreign colour":
        rgb = rng.choice([(120, 70, 30), (20, 200, 210), (128, 128, 0), (90, 90, 100), (190, 220, 120)])
        cover = np.abs(picture - back).sum(-1, keepdims=True) / np.abs(picture - back).sum(-1).max()
        return back + cover * (np.array(rgb) / 255 - back)
    raise AssertionError(name)


def _elsewhere(scene: Scene, rng: random.Random, r: float) -> Thing:
    """A thing in the largest gap."""
    places = [(rng.uniform(r + 2, SIZE - r - 2), rng.uniform(r + 2, SIZE - r - 2)) for _ in range(200)]
    cx, cy = max(places, key=lambda p: min(max(abs(p[0] - t.cx), abs(p[1] - t.cy)) - t.r for t in scene.things))
    return Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), cx, cy, r)


SPOILED = (
    "blank", "noise only", "heavy noise", "blur", "coarse", "pale", "ghost of another", "ghost of itself", "half drawn",
    "hollow", "two colours", "one more, faint", "one more, small", "one more", "one less", "cut off", "scribbled on",
    "striped background", "two backgrounds", "negative", "foreign colour",
    "foreign background", "grainy background", "bitten", "bumped", "rimmed",
)  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_what_nobody_would_call_right_is_not(name: str) -> None:
    rng, noise = random.Random(name), np.random.default_rng(2)
    specs = [spec for kind in KINDS for spec in specs_of(kind, 20, rng)]
    passed = [spec.key for spec in specs if right(spoiled(name, spec, rng, noise), spec)]
    assert len(passed) <= 1, passed


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_a_large_plain_shape_is_not_right_when_blurred(shape: str) -> None:
    """The shapes that a blur changes least."""
    spec = Spec("single_object", (Item(shape),))
    for color, background in (("red", "white"), ("yellow", "black"), ("blue", "gray")):
        picture = array(draw(Scene((Thing(shape, color, 31, 33, 17),), background)))
        assert right(soften(picture, 1.2, 0, np.random.default_rng(0)), spec)
        assert not right(soften(picture, 2.2, 0, np.random.default_rng(0)), spec)


def test_what_is_too_small_or_too_large_is_no_thing_of_this_world() -> None:
    for shape in SHAPES:
        spec = Spec("single_object", (Item(shape),))
        for r, holds in ((4.5, False), (5.5, False), (8.0, True), (17.0, True), (21.0, False), (27.0, False)):
            assert right(array(draw(Scene((Thing(shape, "red", 32, 32, r),), "white"))), spec) == holds, (shape, r)


FOREIGN = {
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
    "pentagon": [(0, -1), (0.95, -0.31), (0.59, 0.81), (-0.59, 0.81), (-0.95, -0.31)],
    "bar": [(-1, -0.45), (1, -0.45), (1, 0.45), (-1, 0.45)],
    "oblong": [(-1, -0.66), (1, -0.66), (1, 0.66), (-1, 0.66)],
    "triangle upside down": [(-1, -1), (1, -1), (0, 1)],
    "right triangle": [(-1, -1), (1, 1), (-1, 1)],
    "trapezium": [(-0.5, -1), (0.5, -1), (1, 1), (-1, 1)],
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -1), (1, 0), (0.1, 1), (0.1, 0.3), (-1, 0.3)],
    "L": [(-1, -1), (-0.2, -1), (-0.2, 0.2), (1, 0.2), (1, 1), (-1, 1)],
    "T": [(-1, -1), (1, -1), (1, -0.3), (0.35, -0.3), (0.35, 1), (-0.35, 1), (-0.35, -0.3), (-1, -0.3)],
    "house": [(0, -1), (1, -0.2), (1, 1), (-1, 1), (-1, -0.2)],
    "squircle": [
        (np.sign(np.cos(a)) * abs(np.cos(a)) ** 0.55, np.sign(np.sin(a)) * abs(np.sin(a)) ** 0.55)
        for a in np.linspace(0, 2 * np.pi, 60)
    ],
}


@pytest.mark.parametrize("name", list(FOREIGN))
@pytest.mark.parametrize("r", [9, 12, 16])
def test_shapes_of_other_worlds_are_none_of_ours(name: str, r: float) -> None:
    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), BACKGROUNDS["white"])
    ImageDraw.Draw(image).polygon([(4 * (31 + r * x), 4 * (33 + r * y)) for x, y in FOREIGN[name]], fill=COLORS["blue"])
    [thing] = read(array(image.reduce(4))).things
    assert thing.shape is None and thing.color == "blue"


def test_no_picture_is_no_error() -> None:
    spec = Spec("single_object", (Item("circle"),))
    good = array(draw(Scene((Thing("circle", "red", 30, 30, 12),), "white")))
    assert right(good, spec)
    for bad in (np.nan, np.inf, -np.inf):
        spot = good.copy()
        spot[50, 50] = bad
        assert not right(spot, spec)
        assert not right(np.full_like(good, bad), spec)
    assert right(good * 1.0001, spec) and not right(good * 50, spec)


def test_a_batch_is_its_pictures() -> None:
    rng = random.Random(2)
    specs = rng.sample(all_specs(), 6)
    images = [array(render(spec, rng)).transpose(2, 0, 1) for spec in specs]
    prompts = [wording(spec, rng) for spec in specs]
    wrong = [wording(alter(spec, rng)[1], rng) for spec in specs]
    got = judge_batch(np.stack([*images, *images, images[0]]), [*prompts, *wrong, "a cat on the moon"])
    assert got[:6].tolist() == [1.0] * 6 and got[6:12].tolist() == [0.0] * 6 and np.isnan(got[12])


# ------------------------------------------------------------------------------------------------------------ parsing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "circle",
        "a",
        "a red",
        "red circle",
        "an red circle",
        "a orange circle",
        "a circle red",
        "a red red circle",
        "a small large circle",
        "a red small circle",
        "a maroon circle",
        "a red circle that is red",
        "a red circle that is blue",
        "a red circle on the left",
        "a red circle on a white background on a black background",
        "on a white background, a red circle on a white background",
        "a photo of on a white background, a red circle",
        "on a white background a red circle",
        "a red circle on a purple background",
        "a red circle on the moon",
        "a photo of red circle",
        "a photo of a photo of a red circle",
        "a red circle, highly detailed",
        "a red circle\non a white background",
        "a red circleon a white background",
        "a red circle..",
        "a circle and a circle",
        "a red circle and a red star",
        "a red circle and a star",
        "a circle and a red star",
        "a red circle and a red circle",
        "a circle and a star and a square",
        "a small circle and a star",
        "a circle and a small star",
        "a red circle above a blue star",
        "a circle above a circle",
        "a circle above a star above a square",
        "a circle on top a star",
        "a circle between a star and a square",
        "two circle",
        "one circles",
        "a circles",
        "two small circles",
        "two circles that are red",
        "two circles and a star",
        "five circles",
        "0 circles",
        "1 circle",
        "a two circles",
        "two crosss",
        "two disc",
        "a pair of red circle",
    ],
)
def test_other_texts_are_none_of_its_business(text: str) -> None:
    assert parse(text) is None


KNOWN = set(all_specs())


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_not(text: str) -> None:
    spec = parse(text)
    assert spec is None or spec in KNOWN


WORDS = sorted({word for spec in all_specs()[::7] for word in wording(spec, random.Random(spec.key)).split()})


@given(st.lists(st.sampled_from(WORDS), max_size=9))
def test_any_words_of_this_world_are_parsed_or_not(words: list[str]) -> None:
    spec = parse(" ".join(words))
    assert spec is None or spec in KNOWN


@given(
    st.sampled_from(all_specs()), st.randoms(use_true_random=False), st.sampled_from(["cat", "wooden", "and", "not"])
)
def test_one_foreign_word_is_enough(spec: Spec, rng: random.Random, word: str) -> None:
    words = wording(spec, rng).split()
    words.insert(rng.randrange(len(words) + 1), word)
    assert parse(" ".join(words)) is None


@given(st.sampled_from(all_specs()), st.randoms(use_true_random=False))
def test_case_spaces_and_a_full_stop_do_not_matter(spec: Spec, rng: random.Random) -> None:
    text = wording(spec, rng)
    for other in (text.upper(), f"{text.capitalize()}.", f"  {text.replace(' ', '   ')} "):
        assert parse(other) == spec


def test_what_is_said_one_way_and_another() -> None:
    assert parse("a circle") == Spec("single_object", (Item("circle"),))
    assert parse("an image of a huge violet plus against a grey background") == Spec(
        "colors", (Item("cross", "purple"),), size="large", background="gray"
    )
    assert parse("a pair of red discs") == Spec("counting", (Item("circle", "red", 2),))
    assert parse("exactly one cross") == Spec("counting", (Item("cross"),))
    below = Spec("position", (Item("star"), Item("circle")), "above")
    assert parse("a circle beneath a star") == parse("a star on top of a circle") == below
    assert parse("a star that is red with a blue cross with a black background") == Spec(
        "color_attr", (Item("cross", "blue"), Item("star", "red")), background="black"
    )
    assert {parse(f"a{'n' if c == 'orange' else ''} {c} star") for c in COLORS} == {
        Spec("colors", (Item("star", c),)) for c in COLORS
    }


def test_published_prompts_are_not_of_this_world(shared: Path) -> None:
    path = shared / "prompts" / "partiprompts" / "PartiPrompts.tsv"
    if not path.exists():
        pytest.skip("no PartiPrompts in shared/prompts")
    with path.open(newline="", encoding="utf-8") as file:
        prompts = [row["Prompt"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(prompts) > 1600
    assert sum(parse(prompt) is not None for prompt in prompts) <= 3
