"""Selection by scores: every step against a plain loop over the rows, and what holds whatever the settings are."""

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import made_up
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pahi.curation.reasons import REASONS
from pahi.curation.select import LIGHT, PICTURES, SCORED, Selection
from pahi.errors import UserError
from pahi.settings import STRATA, Curate

ROLES = {"pick": "train", "held": "held_out"}
IMAGES = made_up.rows(30)
IMAGES[5] = made_up.row(0, 9, status="failed", reason="not finite", image=None, pixels_sha256=None)
IMAGES[11] |= {"pixels_sha256": IMAGES[10]["pixels_sha256"]}
SCORES = made_up.score_rows(IMAGES)
SCORE = {(s["image_id"], s["reward"]): s["score"] for s in SCORES}
BY_ID = {row["image_id"]: row for row in IMAGES}
KEEP_ALL = {"keep_fraction": 1.0}


@contextmanager
def selected(
    images: list[dict[str, Any]] = IMAGES,
    scores: list[dict[str, Any]] = SCORES,
    roles: dict[str, str] = ROLES,
    parts: int = 3,
    **curate: Any,
) -> Iterator[Selection]:
    """A finished selection over tables that come in several parts."""
    with TemporaryDirectory() as scratch:
        selection = Selection(Curate.model_validate(KEEP_ALL | curate), roles, scratch, threads=1)
        size = -(-len(images) // parts)
        tables = [made_up.image_table(images[i : i + size]) for i in range(0, len(images), size)]
        split = [made_up.score_table(scores[i::2]) for i in range(2)]
        selection.load(tables, split, made_up.prompts(30))
        selection.run()
        yield selection
        selection.close()


def alive(selection: Selection) -> set[str]:
    return {r[0] for r in selection.rows("select image_id from alive join pictures using (id)")}


def gone(selection: Selection) -> dict[str, tuple[str, str | None]]:
    rows = selection.rows("select image_id, gone.reason, detail from gone join pictures using (id)")
    found = {row[0]: row[1:] for row in rows}
    assert len(found) == len(rows), "a picture has one reason"
    return found


def candidates() -> list[str]:
    """Drawn, no control picture, no copy, in the order of the tables."""
    seen, found = set(), []
    for row in IMAGES:
        if row["status"] == "ok" and row["arm"] != "standard" and row["pixels_sha256"] not in seen:
            seen.add(row["pixels_sha256"])
            found.append(row["image_id"])
    return found


def standardised(reward: str) -> dict[str, float]:
    scores = [SCORE[i, reward] for i in candidates()]
    mean, deviation = statistics.fmean(scores), statistics.pstdev(scores)
    return {i: (SCORE[i, reward] - mean) / deviation for i in candidates()}


def combined(pick: float = 0.5, held: float = 0.5) -> dict[str, float]:
    a, b = standardised("pick"), standardised("held")
    return {i: pick * a[i] + held * b[i] for i in a}


def best(values: dict[str, float], count: int) -> set[str]:
    return set(sorted(values, key=lambda i: -values[i])[:count])


def test_without_filters_only_what_cannot_be_published_goes() -> None:
    with selected() as s:
        assert alive(s) == set(candidates())
        reasons = Counter(reason for reason, _ in gone(s).values())
        assert reasons == s.reasons() == {"failed": 1, "duplicate": 1, "control": len(IMAGES) - len(candidates()) - 2}
        assert gone(s)[IMAGES[5]["image_id"]] == ("failed", "not finite")
        assert gone(s)[IMAGES[11]["image_id"]] == ("duplicate", f"same pixels as {IMAGES[10]['image_id']}")


def test_a_dataset_of_the_standard_gaussian_alone_has_no_control_group() -> None:
    images = [row for row in IMAGES if row["arm"] == "standard"]
    with selected(images=images) as s:
        assert "control" not in s.reasons() and len(alive(s)) == len(images)


def test_thresholds() -> None:
    with selected(min_score={"pick": 20.1}) as s:
        assert alive(s) == {i for i in candidates() if SCORE[i, "pick"] >= 20.1}
        low = next(i for i in candidates() if SCORE[i, "pick"] < 20.1)
        assert gone(s)[low] == ("min_score", f"pick {SCORE[low, 'pick']:.4g} under 20.1")


def test_a_picture_at_the_threshold_stays() -> None:
    edge = sorted(SCORE[i, "pick"] for i in candidates())[40]
    with selected(min_score={"pick": edge}) as s:
        assert len(alive(s)) == len(candidates()) - 40


def test_quantiles_are_of_all_scored_pictures() -> None:
    scores = sorted(SCORE[i, "held"] for i in candidates())
    with selected(min_quantile={"held": 0.25}) as s:
        left = sorted(SCORE[i, "held"] for i in alive(s))
        assert left == scores[-len(left) :] and abs(len(left) - 0.75 * len(scores)) <= 1
    # What another filter took out before does not move them.
    with selected(min_score={"pick": 20.1}, min_quantile={"held": 0.25}) as s:
        assert alive(s) == {i for i in candidates() if SCORE[i, "held"] >= left[0] and SCORE[i, "pick"] >= 20.1}


def test_uplift_is_over_the_control_picture_of_the_same_noise() -> None:
    unit = made_up.REWARDS["pick"]
    uplift = {}
    for i in candidates():
        row = BY_ID[i]
        control = SCORE.get((f"{row['prompt_id']}-standard-{row['seed']}", "pick"))
        uplift[i] = None if control is None else (SCORE[i, "pick"] - control) / unit
    assert sum(u is not None for u in uplift.values()) > 20
    with selected(min_uplift={"pick": 0.5}) as s:
        assert alive(s) == {i for i, u in uplift.items() if u is None or u >= 0.5}
        found = dict(s.rows("select image_id, u1 from scored join pictures using (id) where arm <> 'standard'"))
        assert s.rewards == ["held", "pick"]
        for i, u in uplift.items():
            assert found[i] == (None if u is None else pytest.approx(u, abs=1e-4))


def test_disagreement_is_training_rewards_above_held_out_ones() -> None:
    pick, held = standardised("pick"), standardised("held")
    with selected(max_disagreement=0.6) as s:
        assert alive(s) == {i for i in candidates() if pick[i] - held[i] <= 0.6}
        assert set(s.reasons()) == {"failed", "control", "duplicate", "disagreement"}
    # Where nothing is held out, it is how far the rewards are apart.
    with selected(max_disagreement=0.6, roles={"pick": "train", "held": "train"}) as s:
        assert alive(s) == {i for i in candidates() if abs(pick[i] - held[i]) <= 0.6}


def test_pareto_keeps_what_no_other_picture_of_the_prompt_beats() -> None:
    def beaten(i: str) -> bool:
        others = [j for j in candidates() if j != i and BY_ID[j]["prompt_id"] == BY_ID[i]["prompt_id"]]
        return any(all(SCORE[j, r] >= SCORE[i, r] for r in made_up.REWARDS) for j in others)

    with selected(pareto=True) as s:
        assert alive(s) == {i for i in candidates() if not beaten(i)}
        assert 30 <= len(alive(s)) < len(candidates())


@pytest.mark.parametrize(
    ("weights", "pick", "held"), [({}, 0.5, 0.5), ({"pick": 1}, 1, 0), ({"pick": 3, "held": 1}, 0.75, 0.25)]
)
def test_top_k_of_each_prompt_by_the_weighted_rewards(weights: dict[str, float], pick: float, held: float) -> None:
    values, by_prompt = combined(pick, held), defaultdict(dict)
    for i, value in values.items():
        by_prompt[BY_ID[i]["prompt_id"]][i] = value
    with selected(top_k=2, weights=weights) as s:
        assert alive(s) == set().union(*(best(group, 2) for group in by_prompt.values()))


@pytest.mark.parametrize(("by", "limit"), [("kind", {"counting": 3, "position": 0}), *((by, 3) for by in STRATA)])
def test_quotas_of_a_stratum(by: str, limit: Any) -> None:
    of = dict(zip(*made_up.prompts(30).select(["prompt_id", by]).to_pydict().values(), strict=True))
    groups = defaultdict(dict)
    for i, value in combined().items():
        groups[of[BY_ID[i]["prompt_id"]]][i] = value
    most = limit if isinstance(limit, dict) else dict.fromkeys(groups, limit)
    with selected(quotas={by: limit}) as s:
        assert alive(s) == set().union(*(best(g, most.get(k, len(g))) for k, g in groups.items()))


def test_the_share_that_is_kept_is_of_what_is_left() -> None:
    values = combined()
    with selected(keep_fraction=0.3) as s:
        assert alive(s) == best(values, round(0.3 * len(values)))
    first = {i: v for i, v in values.items() if SCORE[i, "pick"] >= 20.1}
    with selected(keep_fraction=0.3, min_score={"pick": 20.1}) as s:
        assert alive(s) == best(first, round(0.3 * len(first)))


def test_a_missing_score_is_a_reason_unless_its_reward_counts_for_nothing() -> None:
    scores = [dict(s) for s in SCORES]
    victim = candidates()[3]
    for s in scores:
        if s["image_id"] == victim and s["reward"] == "held":
            s["score"] = None
    with selected(scores=scores) as s:
        assert gone(s)[victim][0] == "unscored"
    with selected(scores=scores, weights={"pick": 1}) as s:
        assert victim in alive(s)
    with selected(scores=scores, weights={"pick": 1}, min_score={"held": 0}) as s:
        assert gone(s)[victim] == ("min_score", "held missing")


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "min_score": st.dictionaries(st.sampled_from(["pick", "held"]), st.floats(18, 22)),
        "min_quantile": st.dictionaries(st.sampled_from(["pick", "held"]), st.floats(0, 0.99)),
        "min_uplift": st.dictionaries(st.sampled_from(["pick", "held"]), st.floats(-2, 2)),
        "max_disagreement": st.floats(0.01, 3),
        "pareto": st.booleans(),
        "top_k": st.integers(1, 4),
        "quotas": st.dictionaries(st.sampled_from(STRATA), st.integers(0, 30)),
        "keep_fraction": st.floats(0.01, 1),
    },
)


@settings(max_examples=15)
@given(LIMITS, st.integers(0, 1000))
def test_every_picture_is_kept_or_has_a_known_reason_whatever_the_order(limits: dict[str, Any], seed: int) -> None:
    with selected(**limits) as s:
        kept, lost = alive(s), gone(s)
        assert kept | set(lost) == set(BY_ID) and not kept & set(lost)
        assert {reason for reason, _ in lost.values()} <= set(REASONS)
        counts = [step["rows"] for step in s.funnel]
        assert counts == sorted(counts, reverse=True) and counts[0] == len(IMAGES) and counts[-1] == len(kept)
        assert [step["name"] for step in s.funnel if step["name"] in s.reasons()]
    # Neither the order of rows nor how they lie in files decides; which of two copies is first does.
    shuffled = [row for row in IMAGES if row not in (IMAGES[10], IMAGES[11])]
    random.Random(seed).shuffle(shuffled)
    with selected(images=[IMAGES[10], IMAGES[11], *shuffled], parts=7, scores=SCORES[::-1], **limits) as s:
        assert alive(s) == kept


@pytest.mark.parametrize(
    ("curate", "parts"),
    [
        ({"min_score": {"pik": 1}}, ["min_score", "'pik'", "held, pick"]),
        ({"weights": {"pik": 1}}, ["weights", "'pik'"]),
        ({"quotas": {"kind": {"shapes": 3}}}, ["quotas.kind", "'shapes'", "counting"]),
    ],
)
def test_a_name_that_is_not_there_is_said(curate: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as error, selected(**curate):
        pass
    assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_histograms_count_every_candidate_and_every_kept_picture() -> None:
    with selected(keep_fraction=0.5) as s:
        for reward, h in s.histograms(10).items():
            assert sum(h["candidates"]) == len(candidates()) and sum(h["kept"]) == len(alive(s))
            scores = [SCORE[i, reward] for i in candidates()]
            assert (h["low"], h["high"]) == (min(scores), max(scores))
            step = (h["high"] - h["low"]) / 10
            first = sum(math.floor((x - h["low"]) / step) == 0 for x in scores)
            assert h["candidates"][0] == first


def test_what_is_larger_than_memory_goes_to_the_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, rng = 60_000, random.Random(0)
    ids = [f"{i:064x}" for i in range(count)]
    prompt = [f"prompt {i // 8}" for i in range(count)]
    digests = [f"{rng.getrandbits(256):064x}" for _ in range(count)]
    images = [ids, prompt, range(count), ["pahi"] * count, ["ok"] * count, [None] * count, digests]
    schema = pa.schema([PICTURES.field(name) for name in LIGHT])
    pictures = pa.table([pa.array(c, f.type) for c, f in zip(images, schema, strict=True)], schema=schema)
    values = [rng.random() for _ in range(count)]
    scores = pa.table([ids, ["pick"] * count, values, [1.0] * count], names=SCORED.names)
    prompts = pa.table({"prompt_id": sorted(set(prompt)), **dict.fromkeys(STRATA, [""] * (count // 8))})
    found = {}
    for memory in ("2GB", "25MB"):
        monkeypatch.setattr("pahi.curation.select.MEMORY", memory)
        scratch = tmp_path / memory
        scratch.mkdir()
        selection = Selection(Curate(top_k=2, keep_fraction=1), ROLES, str(scratch), threads=1)
        selection.load([pictures], [scores], prompts)
        spilled = sum(path.stat().st_size for path in scratch.iterdir())
        selection.run()
        found[memory] = spilled, selection.rows("select id from alive order by id"), selection.funnel
        selection.close()
    (none, *chosen), (spilled, *others) = found.values()
    assert chosen == others and len(chosen[0]) == count // 4
    assert none == 0 and spilled > 1e6
