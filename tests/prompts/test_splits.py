import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import run
from test_near import corpus, exact

from pahi.prompts import Row, prompt_id

FOX = "a red fox sleeping in the deep white snow of a winter forest"
FOX_TOO = "a red fox sleeping in the deep white snow of a winter forest!!"
FOX_ALSO = "a red fox sleeping in the deep white snow of the winter forest"
OWL = "an owl on the roof of an old barn, oil on canvas"


@pytest.mark.parametrize("mode", ["keep", "drop"])
def test_no_near_pair_straddles_and_nothing_is_lost(mode):
    texts = corpus(3)
    prompts, rejects = run(*[Row(i, t) for i, t in enumerate(texts)], near_duplicates=mode, test_fraction=0.4)
    assert len({p["split"] for p in prompts}) == 3
    near = [(p, q) for p in prompts for q in prompts if p["row"] < q["row"] and exact(p["text"], q["text"]) >= 0.7]
    if mode == "drop":
        assert not near and {r["reason"] for r in rejects} == {"near_duplicate"}
        kept = {p["prompt_id"]: p["text"] for p in prompts}
        assert all(exact(r["text"], kept[r["kept"]]) >= 0.7 for r in rejects)
    else:
        assert len(near) > 40 and not rejects
        assert all(p["split"] == q["split"] and p["cluster"] == q["cluster"] for p, q in near)


def test_the_order_of_rows_does_not_move_a_cluster():
    rows = [Row(i, t) for i, t in enumerate(corpus(4))]
    splits = {p["prompt_id"]: p["split"] for p in run(*rows, near_duplicates="keep")[0]}
    random.Random(1).shuffle(rows)
    assert {p["prompt_id"]: p["split"] for p in run(*rows, near_duplicates="keep")[0]} == splits


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_newcomer_joins_the_split_of_what_it_is_near(split):
    prompts, _ = run(Row(1, FOX_TOO), Row(2, OWL), known=[(FOX, split)], near_duplicates="keep")
    assert (prompts[0]["split"], prompts[0]["cluster"], prompts[0]["group"]) == (split, prompt_id(FOX), prompt_id(FOX))
    assert prompts[1]["cluster"] == prompt_id(OWL)
    _, rejects = run(Row(1, FOX_TOO), known=[(FOX, split)], near_duplicates="drop")
    assert (rejects[0]["reason"], rejects[0]["kept"]) == ("near_duplicate", prompt_id(FOX))


def test_a_newcomer_near_two_splits_is_rejected():
    prompts, rejects = run(
        Row(1, FOX_TOO), Row(2, OWL), known=[(FOX, "train"), (FOX_ALSO, "test")], near_duplicates="keep"
    )
    assert [(r["reason"], r["detail"]) for r in rejects] == [
        ("near_other_split", "belongs with prompts of train and test")
    ]
    assert [p["text"] for p in prompts] == [OWL]


def test_a_split_that_the_source_names_is_believed_and_followed():
    prompts, rejects = run(Row(1, FOX, split="test"), Row(2, FOX_TOO), Row(3, FOX_ALSO), near_duplicates="keep")
    assert not rejects and {p["split"] for p in prompts} == {"test"}
    prompts, _ = run(Row(1, FOX, split="test"), Row(2, FOX_ALSO, split="train"), near_duplicates="keep")
    assert [p["split"] for p in prompts] == ["test", "train"]


def test_a_split_that_the_source_names_does_not_stand_against_an_earlier_run():
    rows = [Row(1, FOX_TOO, split="train"), Row(2, FOX_ALSO), Row(3, OWL, split="train")]
    prompts, rejects = run(*rows, known=[(FOX, "test")], near_duplicates="keep")
    assert [(r["row"], r["reason"]) for r in rejects] == [(1, "near_other_split")]
    assert "is named train" in rejects[0]["detail"] and prompt_id(FOX) in rejects[0]["detail"]
    # What is near it follows the earlier run, and is not torn between the two.
    assert {p["row"]: p["split"] for p in prompts} == {2: "test", 3: "train"}
    assert not run(*rows, known=[(FOX, "train")], near_duplicates="keep")[1]
    assert not run(*rows, known=[(FOX, "test")], near_duplicates="ignore")[1]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FOX, FOX_TOO, FOX_ALSO, OWL, OWL + "?", "a third thing entirely"]),
            st.sampled_from([None, None, "g", "h"]),
            st.sampled_from([None, None, None, "train", "test"]),
        ),
        max_size=6,
    ),
    st.lists(st.tuples(st.sampled_from([FOX, OWL]), st.sampled_from(["train", "test"])), max_size=2),
)
@settings(max_examples=60)
def test_what_goes_by_hash_is_never_near_another_split(rows, known):
    known = list(dict(known).items())
    prompts, _ = run(
        *[Row(i, t, group=g, split=s) for i, (t, g, s) in enumerate(rows)], known=known, near_duplicates="keep"
    )
    named = {r[0] for r in rows if r[2]}
    free = [p for p in prompts if p["text"] not in named]
    others = [(p["text"], p["split"], p["group"]) for p in prompts] + [(t, s, None) for t, s in known]
    for p in free:
        for text, split, group in others:
            if exact(p["text"], text) >= 0.7 or p["group"] == group:
                assert p["split"] == split
    # What is new never stands beside what was there in another split, whatever its source says.
    assert all(p["split"] == s for p in prompts for t, s in known if exact(p["text"], t) >= 0.7)


def test_evaluation_sets_are_kept_out_of_training():
    rows = [Row(1, FOX_TOO), Row(2, OWL, split="train"), Row(3, FOX_ALSO, split="test")]
    for mode in ("ignore", "keep"):
        prompts, rejects = run(*rows, evaluation=[FOX, "something else"], near_duplicates=mode, test_fraction=0.0)
        contaminated = {r["row"]: r["detail"] for r in rejects if r["reason"] == "contaminated"}
        expected = {1} if mode == "ignore" else set()  # with its neighbour of the test split it goes to that
        assert set(contaminated) == expected and all("eval:1" in d for d in contaminated.values())
        assert 2 in {p["row"] for p in prompts} and 3 in {p["row"] for p in prompts}
    _, rejects = run(Row(1, " " + FOX), evaluation=[FOX], test_fraction=0.0)
    assert [r["reason"] for r in rejects] == ["contaminated"]
