"""Scenes and their prompts: every wording says one spec, and no test spec is ever said in training."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pahi.tiny import scenes
from pahi.tiny.oracle import parse
from pahi.tiny.scenes import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    SHAPES,
    SIZE,
    Item,
    Scene,
    Spec,
    all_specs,
    alter,
    compose,
    wording,
)


class Script:
    """In the place of a random.Random: takes the choices it is told, and notes how many there were of each."""

    def __init__(self, choices: list[int]) -> None:
        self.choices, self.counts = choices, []  # type: ignore[var-annotated]

    def _next(self, count: int) -> int:
        index = len(self.counts)
        self.counts.append(count)
        return self.choices[index] if index < len(self.choices) else 0

    def choice(self, options: Sequence[Any]) -> Any:
        unique = list(dict.fromkeys(options))
        return unique[self._next(len(unique))]

    def random(self) -> float:
        return (0.999, 0.0)[self._next(2)]

    def shuffle(self, items: list[Any]) -> None:
        orders = list(itertools.permutations(items))
        items[:] = orders[self._next(len(orders))]


def wordings(spec: Spec) -> Iterator[str]:
    """Every wording of a spec, by going through all choices that `wording` makes."""
    choices: list[int] = []
    while True:
        script = Script(choices)
        yield wording(spec, script)  # type: ignore[arg-type]
        taken = [*choices, *[0] * (len(script.counts) - len(choices))]
        while taken and taken[-1] + 1 == script.counts[len(taken) - 1]:
            taken.pop()
        if not taken:
            return
        choices = [*taken[:-1], taken[-1] + 1]


def shows(scene: Scene, spec: Spec) -> bool:
    """Whether a scene is what a spec asks for, from what was drawn and not from pixels."""
    things = list(scene.things)
    if spec.background not in (None, scene.background) or len(things) != sum(item.count for item in spec.items):
        return False
    asked = [item for item in spec.items for _ in range(item.count)]
    for order in itertools.permutations(things):
        if all(i.shape == t.shape and i.color in (None, t.color) for i, t in zip(asked, order, strict=True)):
            break
    else:
        return False
    if spec.size is not None and order[0].r != scenes.SIZES[spec.size]:
        return False
    if spec.relation is not None:
        a, b = order
        return a.cx < b.cx if spec.relation == "left" else a.cy < b.cy
    return True


# ---------------------------------------------------------------------------------------------------------- the specs


def test_every_spec_is_there_once_with_its_key() -> None:
    specs = all_specs()
    assert len(set(specs)) == len({spec.key for spec in specs}) == len(specs)
    # 5 shapes, 7 colours, 3 sizes (none among them), 4 counts, 10 pairs, 2 relations; all with 4 backgrounds.
    colored_pairs = 10 * 7 * 6
    expected = {"single_object": 5 * 3, "colors": 5 * 7 * 3, "counting": 5 * 8 * 4, "position": 20 * 2}
    expected |= {"two_object": 10, "color_attr": colored_pairs}
    assert Counter(spec.kind for spec in specs) == {kind: 4 * n for kind, n in expected.items()}
    assert set(KINDS) == set(expected)


def test_one_scene_has_one_spec() -> None:
    """Two things without a relation are in the order of their shapes; right and below are said of left and above."""
    for spec in all_specs():
        assert spec.relation in (None, "left", "above")
        if spec.relation is None:
            assert list(spec.items) == sorted(spec.items, key=lambda item: item.shape)
        assert len({item.shape for item in spec.items}) == len(spec.items) <= 2


def test_splits_have_their_shares_of_every_kind() -> None:
    counts = Counter((spec.kind, spec.split) for spec in all_specs())
    for kind in KINDS:
        total = sum(counts[kind, split] for split in ("train", "validation", "test"))
        # Four standard deviations of a binomial.
        for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
            assert counts[kind, split] >= 3
            assert abs(counts[kind, split] - share * total) < 4 * (total * share * (1 - share)) ** 0.5


# ---------------------------------------------------------------------------------------------------------- the words


def test_the_enumeration_holds_what_is_drawn() -> None:
    """Guards the tests below: random wordings are among the enumerated ones."""
    rng = random.Random(0)
    for kind in KINDS:
        for spec in rng.sample([s for s in all_specs() if s.kind == kind and s.background in (None, "white")], 3):
            every = set(wordings(spec))
            assert {wording(spec, rng) for _ in range(60)} <= every
            assert len(every) >= 5


def test_parsing_undoes_every_wording() -> None:
    """All wordings of a few specs of each kind, and some of every spec.

    So wordings of two specs are never equal: what says a test spec can say no other, in any words.
    """
    rng, whole = random.Random(1), 0
    for kind in KINDS:
        specs = [spec for spec in all_specs() if spec.kind == kind]
        for spec in rng.sample(specs, 12):
            for text in wordings(spec):
                assert parse(text) == spec, text
                whole += 1
    assert whole > 20_000
    for spec in all_specs():
        for _ in range(8):
            text = wording(spec, rng)
            assert parse(text) == spec, text


def test_no_wording_of_a_test_spec_is_said_in_training() -> None:
    """The same without the parser: sampled wordings, and whole enumerations of neighbours of a test spec."""
    rng = random.Random(2)
    owner: dict[str, Spec] = {}
    for spec in all_specs():
        for text in {wording(spec, rng) for _ in range(12)}:
            assert owner.setdefault(text, spec) == spec, text
    for kind in KINDS:
        for spec in rng.sample([s for s in all_specs() if s.kind == kind and s.split == "test"], 2):
            near = {alter(spec, rng)[1] for _ in range(3)} - {spec}
            assert set(wordings(spec)).isdisjoint(itertools.chain.from_iterable(map(wordings, near)))


def test_articles_and_plurals() -> None:
    rng = random.Random(3)
    for spec in rng.choices(all_specs(), k=2000):
        words = wording(spec, rng).replace(",", "").split()
        for article, following in itertools.pairwise(words):
            assert article != "a" or following[0] not in "aeiou", words
            assert article != "an" or following[0] in "aeiou", words
        if spec.kind == "counting":
            assert any(word.endswith("s") and word not in ("cross", "plus") for word in words) == (
                spec.items[0].count > 1
            ), words


# ------------------------------------------------------------------------------------------------------ the pictures


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_composed_is_what_was_asked(kind: str) -> None:
    rng = random.Random(f"compose {kind}")
    for spec in rng.choices([s for s in all_specs() if s.kind == kind], k=400):
        scene = compose(spec, rng)
        assert shows(scene, spec)
        assert all(t.color in COLORS and t.shape in SHAPES for t in scene.things) and scene.background in BACKGROUNDS
        for thing in scene.things:
            assert min(thing.cx, thing.cy) - thing.r > 1.9 and max(thing.cx, thing.cy) + thing.r < SIZE - 1.9
        for a, b in itertools.combinations(scene.things, 2):
            assert max(abs(a.cx - b.cx), abs(a.cy - b.cy)) - a.r - b.r > 3.9, "they do not touch"
            assert a.shape == b.shape or a.color != b.color


def test_every_possible_scene_is_there_once() -> None:
    """What is drawn at random is one of them, each shows the spec, and no two are alike."""
    rng = random.Random(5)
    for kind in KINDS:
        for spec in rng.sample([s for s in all_specs() if s.kind == kind], 8):
            every = scenes.possible(spec)
            assert len(set(every)) == len(every)
            assert all(shows(scene, spec) for scene in every)
    star = Spec("counting", (Item("star", None, 2),))
    assert len(scenes.possible(star)) == 2 * 7 * 3  # a row and a column, colours, backgrounds
    free = Spec("two_object", (Item("circle"), Item("star")), background="white")
    assert len(scenes.possible(free)) == 2 * 42  # either side, colours


@pytest.mark.parametrize("kind", KINDS)
def test_no_scene_of_an_altered_spec_shows_the_old_one(kind: str) -> None:
    rng, ways = random.Random(f"alter {kind}"), Counter()  # type: ignore[var-annotated]
    known = set(all_specs())
    for spec in [s for s in all_specs() if s.kind == kind]:
        for _ in range(3):
            way, other = alter(spec, rng)
            ways[way] += 1
            assert other in known and other.kind == spec.kind and other != spec
            assert not shows(compose(other, rng), spec)
            if way == "swap":
                colors = [{(i.shape, i.color) for i in s.items} for s in (spec, other)]
                assert not colors[0] & colors[1]
            elif way in ("size", "background"):
                assert getattr(spec, way) is not None and spec.items == other.items
    named = {"single_object": set(), "two_object": set(), "counting": {"color", "count"}, "colors": {"color"}}
    named |= {"position": {"position"}, "color_attr": {"color", "swap"}}  # type: ignore[dict-item]
    sizes = {"size"} if kind in ("single_object", "colors") else set()
    assert set(ways) == {"shape", "background"} | named[kind] | sizes


def test_pictures_hold_exactly_their_things() -> None:
    """Each thing in its colour inside its box, and nothing but background outside."""
    rng = random.Random(4)
    for spec in rng.sample(all_specs(), 150):
        scene = compose(spec, rng)
        pixels = np.asarray(scenes.draw(scene)).astype(int)
        assert pixels.shape == (SIZE, SIZE, 3)
        outside = np.ones((SIZE, SIZE), bool)
        for thing in scene.things:
            left, right = int(thing.cx - thing.r - 0.5), int(thing.cx + thing.r + 1.5)
            top, bottom = int(thing.cy - thing.r - 0.5), int(thing.cy + thing.r + 1.5)
            outside[top:bottom, left:right] = False
            own = (pixels[top:bottom, left:right] == COLORS[thing.color]).all(-1)
            assert 0.15 < own.mean() < 1
            assert own.any(1).sum() >= 0.5 * own.shape[0] and own.any(0).sum() >= 0.5 * own.shape[1]
        assert (pixels[outside] == BACKGROUNDS[scene.background]).all()


def test_the_same_seed_draws_the_same_picture() -> None:
    spec = next(s for s in all_specs() if s.kind == "color_attr")
    one, other, third = (np.asarray(scenes.render(spec, random.Random(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()
