"""What is shown while pictures are drawn: how far it is, and what the noise gains over the control group."""

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from small_world import plain, world

from pahi.generation.uplift import Uplift
from pahi.stages import generate, ingest
from pahi.stages.common import Context

UNITS = {"pick_alpha": 0.5, "image_beta": 2.0, "clip_gamma": 1.25}


def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *sets: str, **more: Any) -> tuple[Context, list[tuple]]:
    """A finished run, and everything that it reported."""
    monkeypatch.setattr(
        generate, "frozen_predictor", lambda *a, found=generate.frozen_predictor: (*found(*a)[:2], UNITS)
    )
    ctx = world(tmp_path / "s", tmp_path, *sets, **more)
    said: list[tuple[str, int, int, str]] = []
    ctx.progress = lambda *report: said.append(report)
    generate.run(ctx, ingest.chain(ctx))
    return ctx, said


def measured(ctx: Context) -> tuple[dict[str, float], int]:
    """The same uplift from the tables that were written: by reward, and the number of pairs."""
    (output,) = generate.locate_all(ctx, ingest.chain(ctx))
    k = ctx.settings.generate.best_of
    pairs: dict[tuple, dict[str, float]] = {}
    for row in output.read("scores").to_pylist():
        if row["score"] is not None:
            key = row["reward"], row["prompt_id"], (row["seed"] - ctx.settings.generate.seed) // k
            pairs.setdefault(key, {})[row["arm"]] = row["score"]
    gains: dict[str, list[float]] = {}
    for (reward, *_), arms in pairs.items():
        if len(arms) == 2:
            gains.setdefault(reward, []).append((arms["pahi"] - arms["standard"]) / UNITS[reward])
    return {name: fmean(values) for name, values in gains.items()}, max(map(len, gains.values()))


@pytest.mark.parametrize("sets", [[], ["generate.images_per_prompt=3"], ["generate.best_of=3"]], ids=str)
def test_the_last_uplift_is_that_of_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: list[str]
) -> None:
    texts = [f"{text} nan" if i % 9 == 0 else text for i, text in enumerate(plain(40))]  # these are in no pair
    ctx, said = drawn(tmp_path, monkeypatch, "generate.max_bad_fraction=1", *sets, texts=texts)
    known, pairs = measured(ctx)
    figures = ", ".join(f"{name} {known[name]:+.2f}" for name in UNITS)
    assert said[-1] == ("generate", 40, 40, f"uplift {figures} ({pairs} pairs)")


def test_it_is_shown_long_before_the_end_and_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard of forty prompts: a report a batch, not a single one at its end."""
    _, said = drawn(tmp_path, monkeypatch, "generate.shard_rows=40")
    counts = [done for _, done, _, _ in said]
    assert counts == sorted(counts) and counts[0] <= 4 and counts.count(40) == 1
    early = [note for _, done, _, note in said if done < 20]
    assert any(re.fullmatch(r"uplift pick_alpha [+-]\d\.\d\d, .* \(\d+ pairs\)", note) for note in early)


def test_without_a_control_group_it_counts_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = drawn(tmp_path, monkeypatch, "generate.control_fraction=0")
    assert {note for _, _, _, note in said} == {"prompts"} and said[-1][1:3] == (40, 40)


def test_a_shard_that_is_drawn_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, failures = generate.Output.commit_shard, ["part-00001", "part-00003"]

    def broken(self: Any, shard: str, *args: Any, **kwargs: Any) -> Any:
        if shard in failures:
            failures.remove(shard)
            raise ConnectionError("the store hung up")
        return commit(self, shard, *args, **kwargs)

    monkeypatch.setattr(generate.Output, "commit_shard", broken)
    ctx, said = drawn(tmp_path, monkeypatch)
    counts = [done for _, done, _, _ in said]
    assert not failures and counts == sorted(counts)
    known, pairs = measured(ctx)
    assert said[-1][1:] == (40, 40, f"uplift {', '.join(f'{n} {known[n]:+.2f}' for n in UNITS)} ({pairs} pairs)")


def test_what_others_draw_is_not_counted_by_a_part(tmp_path: Path) -> None:
    ctx = world(tmp_path / "s", tmp_path)
    said: list[tuple[str, int, int, str]] = []
    ctx.progress = lambda *report: said.append(report)
    generate.draw(generate.prepare(ctx, ingest.chain(ctx)), [(0, 1), (0, 3)], part=True)
    assert {total for _, _, total, _ in said} == {16} and said[-1][1] == 16


def test_figures_of_processes_add_up() -> None:
    one, other = Uplift(["a", "b"]), Uplift(["a", "b"])
    one.add("a", 3.0, 1.0, 2.0)
    other.add("a", 1.0, 2.0, 1.0)
    other.add("a", None, 2.0, 1.0)
    other.add("b", 5.0, 1.0, None)
    other.add("b", 5.0, 1.0, float("nan"))
    assert Uplift(["a"]).note == ""
    one.merge(other)
    assert one.note == "uplift a +0.00 (2 pairs)"
