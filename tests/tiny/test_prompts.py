import json
from collections import Counter

from pahi.prompts import clean, ingest_rows, prompt_id, read_source
from pahi.settings import Ingest, Source
from pahi.tiny.oracle import parse
from pahi.tiny.prompts import PATH, build
from pahi.tiny.scenes import COLORS, KINDS, PLURALS, SHAPES, SYNONYMS, all_specs

SOURCE = Source(path="pkg:pahi.tiny/prompts.jsonl", name="tiny", kind="kind", group="scene", split="split")


def test_the_shipped_file_is_what_build_gives():
    assert [json.loads(line) for line in PATH.read_text().splitlines()] == build()


def test_every_row_says_its_scene_and_is_split_as_the_world_splits_it():
    specs = {spec.key: spec for spec in all_specs()}
    found = build()
    assert 1000 <= len(found) <= 1200
    assert len({row["text"] for row in found}) == len(found)
    for row in found:
        spec = specs[row["scene"]]
        assert (row["kind"], row["split"]) == (spec.kind, spec.split)
        assert parse(row["text"]) == spec
        assert clean(row["text"]) == (row["text"], [])


def test_small_kinds_are_whole_and_color_attr_does_not_dominate():
    every = Counter(spec.kind for spec in all_specs())
    kept = Counter(kind for kind, _ in {(row["kind"], row["scene"]) for row in build()})
    assert all(kept[kind] == every[kind] for kind in ("single_object", "two_object", "position"))
    rows = Counter(row["kind"] for row in build())
    assert set(rows) == set(KINDS)
    assert max(rows.values()) < 0.3 * sum(rows.values())


def test_every_split_has_every_kind():
    counts = Counter((row["split"], row["kind"]) for row in build())
    for kind in KINDS:
        assert counts["test", kind] >= 20
        assert counts["validation", kind] >= 6
        assert counts["train", kind] >= 80


def test_the_first_rows_are_a_fair_sample_of_kinds():
    rows = build()
    total = Counter(row["kind"] for row in rows)
    for n in (30, 100, 317):
        first = Counter(row["kind"] for row in rows[:n])
        assert all(abs(first[kind] - n * total[kind] / len(rows)) <= 2 for kind in KINDS)


def test_the_test_prompts_that_the_demo_takes_are_a_fair_sample_of_kinds():
    """Evaluation takes the first 150 by prompt id."""
    test = sorted((row for row in build() if row["split"] == "test"), key=lambda row: prompt_id(row["text"]))
    first = Counter(row["kind"] for row in test[:150])
    total = Counter(row["kind"] for row in test)
    assert all(first[kind] >= 15 and abs(first[kind] - 150 * total[kind] / len(test)) <= 10 for kind in KINDS)


def test_nothing_of_the_order_says_the_split():
    rows = build()
    shares = [sum(row["split"] == "test" for row in rows[i : i + 380]) / 380 for i in (0, 380, 760)]
    assert all(0.14 < share < 0.28 for share in shares)


def test_every_word_of_the_world_is_said():
    words = Counter(word for row in build() for word in set(row["text"].replace(",", "").split()))
    said = {word for words in SYNONYMS.values() for word in words} | set(PLURALS.values()) | {*SHAPES, *COLORS}
    assert min(words[word] for word in said) >= 5
    assert min(words[word] for word in ("one", "two", "three", "four", "3", "pair", "beneath", "over", "that")) >= 5


def test_ingest_takes_all_of_them_as_they_are():
    rows = list(read_source(SOURCE))
    found = ingest_rows([("tiny", row) for row in rows], Ingest(sources=[SOURCE]))
    assert not len(found.rejects)
    assert [(p["text"], p["kind"], p["group"], p["split"]) for p in found.prompts.to_pylist()] == [
        (r["text"], r["kind"], r["scene"], r["split"]) for r in build()
    ]
