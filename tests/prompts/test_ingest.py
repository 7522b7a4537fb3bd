import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahi.artifacts.schemas import PROMPTS, REJECTS
from pahi.errors import UserError
from pahi.prompts import Row, clean, ingest_rows, prompt_id, read_source, split_of
from pahi.prompts.reasons import REASONS
from pahi.settings import Ingest, Source

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "prompts"


def ingest(**values):
    return Ingest(sources=[Source(path="a.txt")], **{"near_duplicates": "ignore", **values})


def known_prompts(*texts_and_splits):
    rows = [
        {
            "prompt_id": prompt_id(text), "text": text, "original": text, "source": "old", "row": 1, "flags": [],
            "group": prompt_id(text), "split": split, "cluster": prompt_id(text), "parameters": [], "weights": [],
        }
        for text, split in texts_and_splits
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, PROMPTS)


def run(*rows, known=(), evaluation=(), weights=None, **values):
    rows = [("s", row) if isinstance(row, Row) else row for row in rows]
    guarded = [("eval", Row(i, text)) for i, text in enumerate(evaluation, start=1)]
    found = ingest_rows(rows, ingest(**values), known_prompts(*known), guarded, weights)
    assert len(found.prompts) + len(found.rejects) == len(rows)
    found.prompts.validate(full=True)
    found.rejects.validate(full=True)
    assert found.prompts.schema.equals(PROMPTS) and found.rejects.schema.equals(REJECTS)
    rejects = found.rejects.to_pylist()
    assert {r["reason"] for r in rejects} <= set(REASONS)
    return found.prompts.to_pylist(), rejects


ROWS = st.builds(
    Row,
    row=st.integers(1, 99),
    text=st.one_of(st.none(), st.text("ab &;\u200b", max_size=6), st.text(max_size=9)),
    kind=st.one_of(st.none(), st.text(max_size=2)),
    group=st.one_of(st.none(), st.sampled_from("xyz")),
    split=st.sampled_from([None, "", "train", "validation", "test", "dev"]),
    error=st.sampled_from([None, None, None, "empty", "not JSON"]),
)


@given(st.lists(ROWS, max_size=12), st.integers(1, 8), st.sampled_from(["ignore", "keep", "drop"]))
@settings(max_examples=60)
def test_rows_in_are_prompts_and_rejects_out(rows, longest, near):
    prompts, rejects = run(*rows, known=[("a", "test")], max_characters=longest, near_duplicates=near)
    identities = [p["prompt_id"] for p in prompts]
    assert len(set(identities)) == len(identities) and prompt_id("a") not in identities
    assert all(p["prompt_id"] == prompt_id(p["text"]) and len(p["text"]) <= longest for p in prompts)
    assert Counter(r.row for r in rows) == Counter(r["row"] for r in prompts + rejects)


def test_reasons():
    _, rejects = run(
        Row(1, "a fox"), Row(2, " a  fox\n"), Row(3, ""), Row(4, "\u200b"), Row(5, None, error="no text"),
        Row(6, "\ufffd", error="not utf-8"), Row(7, "x" * 11), Row(8, "old"), Row(9, "c", split="dev"),
        Row(10, "", error="empty"),
        known=[("old", "test")], max_characters=10,
    )  # fmt: skip
    assert [(r["row"], r["reason"]) for r in rejects] == [
        (2, "duplicate"), (3, "empty"), (4, "empty"), (5, "unreadable"), (6, "unreadable"), (7, "too_long"),
        (8, "known"), (9, "unreadable"), (10, "empty"),
    ]  # fmt: skip
    details = {r["row"]: r["detail"] for r in rejects}
    assert details[2] == "s:1" and details[5] == "no text" and details[6] == "not utf-8"
    assert "'dev'" in details[9] and "test" in details[8]


def test_a_prompt_row_says_where_it_is_from():
    [prompt], _ = run(Row(7, " salt &amp; pepper", kind="food", group="g", split="test"))
    assert prompt == {
        "prompt_id": prompt_id("salt & pepper"), "text": "salt & pepper", "original": " salt &amp; pepper",
        "source": "s", "row": 7, "kind": "food", "group": "g", "split": "test", "flags": ["html", "whitespace"],
        "cluster": prompt_id("salt & pepper"), "parameters": [], "weights": [],
    }  # fmt: skip


def test_length_counts_after_cleaning_and_rejects_keep_2000_characters():
    prompts, rejects = run(Row(1, "a" + " " * 50 + "b"), Row(2, "y" * 9000), max_characters=10)
    assert prompts[0]["text"] == "a b"
    assert rejects[0]["reason"] == "too_long" and len(rejects[0]["text"]) == 2000


def test_order_and_company_do_not_move_a_prompt():
    rows = [Row(i, f"prompt {i}", group=f"g{i // 3}" if i % 2 else None) for i in range(300)]
    splits = {p["prompt_id"]: p["split"] for p in run(*rows)[0]}
    assert set(splits.values()) == {"train", "validation", "test"}
    random.Random(0).shuffle(rows)
    assert {p["prompt_id"]: p["split"] for p in run(*rows)[0]} == splits
    assert all(splits[p["prompt_id"]] == p["split"] for p in run(*rows[:50])[0])


@given(st.lists(st.text("abc \u200b&;", max_size=6), max_size=20))
def test_the_short_way_for_prompts_that_nothing_ties_leads_to_the_same(texts):
    """An evaluation set that is near none of them makes ingestion take the long way."""
    rows = [Row(i, text) for i, text in enumerate(texts, start=1)]
    short = run(*rows, near_duplicates="ignore", test_fraction=0.3)
    assert short == run(*rows, near_duplicates="ignore", test_fraction=0.3, evaluation=["0123456789"])


def test_groups_are_not_divided():
    prompts, _ = run(*[Row(i, f"prompt {i}", group=f"g{i % 40}") for i in range(400)])
    assert len({(p["group"], p["split"]) for p in prompts}) == 40
    assert len({p["split"] for p in prompts}) == 3


@given(st.text(), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.4))
def test_changing_one_fraction_moves_nothing_between_the_held_out_splits(group, validation, test, other):
    moved = {split_of(group, validation, test), split_of(group, other, test)}
    assert moved != {"validation", "test"}
    assert split_of(group, 0, 0) == "train"


def test_fractions_are_met():
    counts = Counter(split_of(str(i), 0.1, 0.2) for i in range(5000))
    assert abs(counts["validation"] - 500) < 100 and abs(counts["test"] - 1000) < 130


def test_splits_are_pinned():
    # A published dataset's splits: should these ever change, test prompts turn into training prompts.
    splits = " ".join(split_of(group, 0.3, 0.3) for group in "abcdefgh")
    assert splits == "test train test train train test validation test"


def test_fractions_must_leave_something():
    with pytest.raises(UserError, match="train"):
        run(validation_fraction=0.5, test_fraction=0.5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real prompt files in ../shared/prompts")
def test_real_prompts():
    rows = list(read_source(Source(path=str(SHARED / "diffusiondb/refl_data.json"))))
    _, rejects = run(*rows)
    # 197 are equal byte for byte; the others are once they are cleaned.
    same = len(rows) - len({clean(r.text or "")[0] for r in rows})
    assert same >= 197 and Counter(r["reason"] for r in rejects) == {"duplicate": same}
