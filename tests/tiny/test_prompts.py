import json
from collections import Counter

from pahi.prompts import clean, ingest_rows, read_source
from pahi.settings import Ingest, Source
from pahi.tiny.prompts import PATH, build, scene_key
from pahi.tiny.scenes import all_specs

SOURCE = Source(path="pkg:pahi.tiny/prompts.jsonl", name="tiny", kind="kind", group="scene", split="split")


def test_the_shipped_file_is_what_build_gives():
    assert [json.loads(line) for line in PATH.read_text().splitlines()] == build()


def test_every_scene_once_and_split_as_the_world_splits_it():
    specs = {scene_key(spec): spec for spec in all_specs()}
    assert len(specs) == len(all_specs())
    found = build()
    assert len({row["text"] for row in found}) == len({row["scene"] for row in found}) == len(found)
    for row in found:
        spec = specs[row["scene"]]
        assert (row["kind"], row["split"]) == (spec.kind, spec.split)
        assert spec.shape in row["text"]
        assert clean(row["text"]) == (row["text"], [])


def test_all_of_the_simple_kinds_and_two_fifths_of_the_compositions():
    every = Counter(spec.kind for spec in all_specs())
    kept = Counter(row["kind"] for row in build())
    assert 0.36 < kept.pop("composition") / every.pop("composition") < 0.44
    assert kept == every


def test_the_first_rows_are_a_fair_sample():
    shapes = Counter(row["scene"].split("/")[0] for row in build()[:120])
    assert len(shapes) == 6 and min(shapes.values()) >= 8


def test_ingest_takes_all_of_them_as_they_are():
    rows = list(read_source(SOURCE))
    found = ingest_rows([("tiny", row) for row in rows], Ingest(sources=[SOURCE]))
    assert not len(found.rejects)
    assert [(p["text"], p["kind"], p["group"], p["split"]) for p in found.prompts.to_pylist()] == [
        (r["text"], r["kind"], r["scene"], r["split"]) for r in build()
    ]
