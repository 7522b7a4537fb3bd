"""The small world's figures: their statistics, their prompts, and all of them on the shipped weights."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pahi.tiny import figures, sheets
from pahi.tiny.evaluate import tables
from pahi.tiny.figures import auc, by_kind, figure, measure, pictures, test_prompts
from pahi.tiny.oracle import parse
from pahi.tiny.preferences import DAMAGE, LATENT, WRONG
from pahi.tiny.scenes import KINDS, all_specs, draw

test_prompts.__test__ = False  # type: ignore[attr-defined]


def test_prompts_are_of_the_test_split_and_of_all_kinds_alike() -> None:
    asked = test_prompts(600, seed=0)
    assert {a.spec.split for a in asked} == {"test"}
    assert Counter(a.spec.kind for a in asked) == dict.fromkeys(KINDS, 100)
    assert all(parse(a.text) == a.spec for a in asked)
    every = Counter(s.kind for s in all_specs() if s.split == "test")
    for kind in KINDS:
        times = Counter(a.spec for a in asked if a.spec.kind == kind)
        assert len(times) == min(100, every[kind]) and max(times.values()) - min(times.values()) <= 1
    assert test_prompts(12, seed=0) != test_prompts(12, seed=1)


def test_an_interval_holds_its_mean_and_narrows_with_specs() -> None:
    rng = np.random.default_rng(0)
    specs = [s for s in all_specs() if s.kind == "counting"][:400]
    few, many = figure(rng.random(20), specs[:20]), figure(rng.random(400), specs)
    for found in (few, many):
        assert found["low"] < found["value"] < found["high"]
    assert 3 < (few["high"] - few["low"]) / (many["high"] - many["low"]) < 7
    # The standard error of a mean of 400 uniform numbers, times 2 * 1.96.
    assert many["high"] - many["low"] == pytest.approx(3.92 * (1 / 12 / 400) ** 0.5, rel=0.15)


def test_pictures_of_one_spec_are_one_observation() -> None:
    """The same picture ten times over tells nothing new; NaNs are left out."""
    specs = [s for s in all_specs() if s.kind == "colors"][:50]
    values = np.random.default_rng(1).random(50)
    once, often = figure(values, specs), figure(np.repeat(values, 10), [s for s in specs for _ in range(10)])
    assert often == pytest.approx(once | {"n": 500})
    assert figure([*values, np.nan], [*specs, specs[0]]) == once
    assert figure([np.nan], specs[:1]) == {"value": None, "low": None, "high": None, "n": 0}


def test_kinds_are_resampled_apart() -> None:
    """Where every kind is constant there is nothing uncertain, however different they are."""
    asked = test_prompts(60, seed=2)
    values = [float(KINDS.index(a.spec.kind)) for a in asked]
    found = by_kind(values, [a.spec for a in asked])
    assert found["overall"]["low"] == found["overall"]["high"] == pytest.approx(2.5)
    assert [found[kind]["value"] for kind in KINDS] == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12))
def test_auc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    right, wrong = [s for s, r in rows if r], [s for s, r in rows if not r]
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(right, wrong)]
    got = auc(np.array([s for s, _ in rows], float), np.array([r for _, r in rows], bool))
    assert got == pytest.approx(np.mean(pairs)) if pairs else np.isnan(got)


def test_a_sheet_shows_every_picture_in_its_frame() -> None:
    scene = figures.scenes.Scene((figures.scenes.Thing("star", "red", 30, 30, 14),), "white")
    images = pictures([draw(scene)] * 10)
    page = np.asarray(sheets.sheet(images, ["a red star"] * 10, [sheets.GREEN] * 9 + [sheets.RED]))
    side = figures.scenes.SIZE * sheets.SCALE
    around = (side + 2 * sheets.FRAME) ** 2 - side**2
    assert (page == sheets.GREEN).all(-1).sum() == 9 * around
    assert (page == sheets.RED).all(-1).sum() == around
    assert (page == figures.scenes.COLORS["red"]).all(-1).sum() > 10 * 300


@pytest.fixture(scope="module")
def world() -> figures.World:
    return measure(6, lambda text: None)


def test_every_figure_is_there(world: figures.World) -> None:
    found = world.figures
    json.dumps(found, allow_nan=False)
    for name in ("accepts", "accepts_after_vae", "refuses", "refuses_after_vae"):
        assert set(found["oracle"][name]) == {"overall", *KINDS}
    assert found["oracle"]["accepts"]["overall"]["value"] == 1
    assert set(found["vae"]["psnr"]) == set(found["student"]["accuracy"]) == {"overall", *KINDS}
    assert {"shape", "color", "count", "background", "clear", "position"} <= set(found["student"]["requirements"])
    assert found["student"]["accuracy"]["overall"]["n"] == 6 * figures.SEEDS
    for reward in found["rewards"].values():
        assert {"overall", *LATENT} < set(reward["pairs"]) <= {"overall", *WRONG, *DAMAGE, *LATENT}
    assert reward["pairs"]["overall"]["n"] == 6 * 6  # four times through spoiling, and each way to spoil a latent
    assert 1e6 < found["weights"]["all"]["bytes"] < 20e6
    assert found.get("sums_agree", True)


def test_every_table_has_its_rows(world: figures.World) -> None:
    for title, rows in tables(world.figures).items():
        assert rows and all(list(row) == list(rows[0]) for row in rows), title
        assert len(rows[0]) >= 2


def test_contact_sheets_are_written(world: figures.World, tmp_path) -> None:
    paths = sheets.write_sheets(world, tmp_path / "sheets")
    assert [path.name for path in paths] == [f"tiny-{name}.png" for name in ("scenes", "vae", "student")]
    assert all(path.stat().st_size > 1000 for path in paths)
