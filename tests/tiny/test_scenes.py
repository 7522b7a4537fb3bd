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
from pahi.tiny.scenes import Spec, all_specs, corrupt, render, wording
from pahi.tiny.train import KIND_WEIGHTS, sample_specs


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


@pytest.fixture(scope="module")
def said() -> dict[Spec, set[str]]:
    return {spec: set(wordings(spec)) for spec in all_specs()}


def test_all_specs_are_distinct_and_of_every_kind() -> None:
    specs = all_specs()
    assert len(set(specs)) == len(specs) == 6 + 48 * (1 + 2 + 3 + 4 + 6 + 12)
    assert {spec.kind for spec in specs} == set(KIND_WEIGHTS)


def test_the_enumeration_holds_what_is_drawn(said: dict[Spec, set[str]]) -> None:
    """Guards the tests below: random wordings are among the enumerated ones."""
    rng = random.Random(0)
    for spec in rng.sample(all_specs(), 200):
        assert {wording(spec, rng) for _ in range(20)} <= said[spec]
    assert min(map(len, said.values())) == 5 and sum(map(len, said.values())) > 50_000


def test_every_wording_is_parsed_back(said: dict[Spec, set[str]]) -> None:
    """All wordings of every 20th spec, and three of each."""
    rng = random.Random(1)
    for i, (spec, texts) in enumerate(said.items()):
        for text in sorted(texts) if i % 20 == 0 else rng.sample(sorted(texts), 3):
            assert parse(text) == spec, text
            assert parse(f" {text.capitalize()}. ") == spec


def test_no_two_specs_share_a_wording(said: dict[Spec, set[str]]) -> None:
    """So a test spec cannot be said by a training one, in any words."""
    owner: dict[str, Spec] = {}
    for spec, texts in said.items():
        for text in texts:
            assert owner.setdefault(text, spec) == spec, text
    split = {
        name: set().union(*(t for s, t in said.items() if s.split == name)) for name in ("train", "validation", "test")
    }
    for one, other in itertools.combinations(split.values(), 2):
        assert one and other and not one & other


def test_splits_cover_every_kind_in_their_shares() -> None:
    counts = Counter((spec.kind, spec.split) for spec in all_specs())
    for kind in KIND_WEIGHTS:
        total = sum(counts[kind, split] for split in ("train", "validation", "test"))
        if kind == "single_object":
            assert counts[kind, "train"] == total == 6
            continue
        assert counts[kind, "test"] > 0 and counts[kind, "validation"] > 0
        # Four standard deviations of a binomial around 20 % and 10 %.
        for split, share in (("test", 0.2), ("validation", 0.1)):
            assert abs(counts[kind, split] - share * total) < 4 * (total * share * (1 - share)) ** 0.5


def test_training_takes_training_specs_only() -> None:
    specs = sample_specs(5000, 3)
    assert {spec.split for spec in specs} == {"train"}
    assert specs == sample_specs(5000, 3) != sample_specs(5000, 4)
    counts = Counter(spec.kind for spec in specs)
    for kind, weight in KIND_WEIGHTS.items():
        assert abs(counts[kind] / 5000 - weight) < 0.03


def test_pictures_show_one_shape_well_inside() -> None:
    rng = random.Random(4)
    for spec in rng.sample(all_specs(), 150):
        pixels = np.asarray(render(spec, rng)).astype(int)
        assert pixels.shape == (64, 64, 3)
        back = pixels[0, 0]
        assert tuple(back) in scenes.BACKGROUNDS.values()
        if spec.background is not None:
            assert tuple(back) == scenes.BACKGROUNDS[spec.background]
        rows, columns = np.nonzero((pixels != back).any(-1))
        assert rows.min() >= 1 and rows.max() <= 62 and columns.min() >= 1 and columns.max() <= 62
        if spec.color is not None:
            assert (pixels == scenes.COLORS[spec.color]).all(-1).sum() > 20
        cx, cy = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
        where = {"left": cx < 29, "right": cx > 35, "top": cy < 29, "bottom": cy > 35}
        assert spec.place is None or where[spec.place]


def test_the_same_seed_draws_the_same_picture() -> None:
    spec = Spec("star", "pink", place="left")
    one, other, third = (np.asarray(render(spec, random.Random(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()


def test_corrupt_changes_exactly_one_named_attribute() -> None:
    rng = random.Random(5)
    for spec in all_specs():
        other = corrupt(spec, rng)
        differing = [
            k for k in ("shape", "color", "size", "background", "place") if getattr(spec, k) != getattr(other, k)
        ]
        assert len(differing) == 1 and getattr(spec, differing[0]) is not None
