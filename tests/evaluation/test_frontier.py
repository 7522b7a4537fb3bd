"""The frontier's figures, on evaluations whose answers are known; and the benchmark's command, on small settings."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from pahi.artifacts.schemas import EVALUATED, SCORES
from pahi.errors import PahiError
from pahi.evaluation.frontier import (
    Evaluation,
    Frontier,
    best_at,
    gather,
    pooled_rows,
    seed_rows,
    shuffled_rows,
    versus_rows,
)
from pahi.evaluation.plots import compute_svg, frontier_svg
from pahi.settings import load_settings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import frontier as command

OWN = load_settings().rewards
# pick_alpha trains, pick_beta is held out, the oracle judges.
REWARDS = OWN.model_copy(
    update={"train": OWN.train[:1], "held_out": [OWN.held_out[0].model_copy(update={"name": "pick_beta"})]}
)
PROMPTS, NOISES = 30, 2


def made_up(
    predictor: str,
    beta: float,
    seed: int,
    gains: dict[str, float],
    diversity: dict[str, float],
    estimator: str = "pathwise",
) -> Evaluation:
    """Arms that stand so many units above the standard one, and keep so much diversity."""
    rng = np.random.default_rng(7)  # the same standard arm in every evaluation
    base = rng.normal(20, 1, size=(PROMPTS, NOISES))
    scores, evaluated = [], []
    for arm, gain in {"standard": 0.0, **gains}.items():
        for p in range(PROMPTS):
            for s in range(NOISES):
                for reward, unit in (("pick_alpha", 2.0), ("pick_beta", 0.5), ("oracle", 0.1)):
                    score = base[p, s] + gain * unit
                    row = {"prompt_id": f"p{p}", "seed": s, "arm": arm, "reward": reward}
                    scores.append({**row, "score": None if reward == "oracle" and p == 0 else score})
            kept = diversity.get(arm, 1.0) * (1 + p % 3)
            row = {"prompt_id": f"p{p}", "kind": "any", "arm": arm, "group": f"scene{p // 2}", "diversity": kept}
            evaluated.append(
                {
                    **row,
                    "feature_diversity": kept,
                    "noise_norm": 1.0,
                    "noise_correlation": 0.0,
                    "kl": 0.1 if arm != "best_of_4" else None,
                }
            )
    units = {"pick_alpha": 2.0, "pick_beta": 0.5, "oracle": 3.0}
    tables = pa.Table.from_pylist(scores, schema=SCORES), pa.Table.from_pylist(evaluated, schema=EVALUATED)
    return Evaluation(predictor, estimator, beta, seed, units, *tables)


@pytest.fixture
def f() -> Frontier:
    pahi = {"hpi": 0.1, "pahi": 1.0, "pahi_shuffled": 0.25}
    return gather(
        REWARDS,
        [
            made_up("hpi", 1.0, 0, {"hpi": 0.2, "best_of_4": 0.75}, {"hpi": 0.99, "best_of_4": 0.97}),
            made_up("pahi", 1.0, 0, pahi, {"pahi": 0.5}),
            made_up("pahi", 1.0, 1, {**pahi, "pahi": 2.0}, {"pahi": 0.7}),
            made_up("pahi", 9.0, 0, {**pahi, "hpi": 0.05, "pahi": 0.5}, {"pahi": 0.95}),
        ],
    )


def test_training_seeds_are_pooled_and_shown(f: Frontier) -> None:
    group = f.groups()["pahi", 1.0]
    assert [arm.seed for arm in group] == [0, 1]
    for reward in ("pick_alpha", "pick_beta"):
        assert f.uplift(group, reward)["value"] == pytest.approx(1.5), "in its own units"
    assert f.uplift(group, "oracle")["value"] == pytest.approx(0.15), "in shares, over the prompts that it judges"
    assert f.share(group, "diversity")["value"] == pytest.approx(0.6)
    rows = {(row["predictor"], row["beta"]): row for row in pooled_rows(f)}
    assert set(rows) == {("hpi", "1"), ("hpi", "9"), ("pahi", "1"), ("pahi", "9"), ("best of 4", "-")}
    assert rows["pahi", "1"]["pick_alpha"].startswith("+1.50 [") and rows["pahi", "1"]["oracle"].startswith("+15.0 [")
    assert rows["best of 4", "-"]["calls"] == 4 and rows["best of 4", "-"]["KL"] == "-"
    assert [(r["predictor"], r["seed"]) for r in seed_rows(f) if r["beta"] == "1"] == [
        ("hpi", 0), ("hpi", 1), ("pahi", 0), ("pahi", 1)
    ]  # fmt: skip


def test_a_choice_among_more_or_fewer_is_the_same_predictor() -> None:
    gains = {"selected": 1.0, "selected_shuffled": 0.25, "selected_of_4": 0.5, "selected_of_64": 1.5}
    found = gather(REWARDS, [made_up("selected", 16.0, seed, gains, {"selected_of_4": 0.9}) for seed in (0, 1)])
    rows = {(row["predictor"], row["beta"]): row["pick_alpha"][:5] for row in pooled_rows(found)}
    assert rows == {
        ("selected", "of 4"): "+0.50", ("selected", "of 16"): "+1.00", ("selected", "of 64"): "+1.50"
    }  # fmt: skip
    assert [(row["predictor"], row["beta"]) for row in shuffled_rows(found)] == [("selected", "of 16")]
    assert frontier_svg(found, "oracle").count("<polyline") == 1, "one line over all of them"


def test_what_is_learned_otherwise_is_another_predictor_with_an_hpi_of_its_own() -> None:
    gains = {"hpi": 0.1, "pahi": 1.0, "pahi_shuffled": 0.25}
    more = {"hpi": 0.5, "pahi": 2.0, "pahi_shuffled": 0.75}
    found = gather(REWARDS, [made_up("pahi", 1.0, 0, gains, {}), made_up("pahi", 1.0, 0, more, {}, "value")])
    rows = {row["predictor"]: row["pick_alpha"][:5] for row in pooled_rows(found)}
    assert rows == {"hpi": "+0.10", "pahi": "+1.00", "hpi/value": "+0.50", "pahi/value": "+2.00"}
    versus = {(row["predictor"], row["minus"]): row["pick_beta"][:5] for row in versus_rows(found)}
    assert versus == {("pahi", "hpi"): "+0.90", ("pahi/value", "hpi/value"): "+1.50"}
    assert {row["predictor"]: row["pick_alpha, shuffled"][:5] for row in shuffled_rows(found)} == {
        "pahi": "+0.25", "pahi/value": "+0.75"
    }  # fmt: skip


def test_an_hpi_of_its_own_stands_for_pahis(f: Frontier) -> None:
    """At beta 1 and seed 0 there are both; elsewhere PAHI's is all there is."""
    hpi = {(arm.beta, arm.seed): f.uplift([arm], "pick_alpha")["value"] for arm in f.arms if arm.label == "hpi"}
    assert hpi == {(1.0, 0): pytest.approx(0.2), (1.0, 1): pytest.approx(0.1), (9.0, 0): pytest.approx(0.05)}


def test_pairs_of_two_learned_arms(f: Frontier) -> None:
    shuffled = {row["beta"]: row for row in shuffled_rows(f)}
    assert shuffled["1"]["pick_alpha, difference"].startswith("+1.25 [")  # 1.5 less 0.25
    versus = {(row["predictor"], row["beta"], row["minus"]): row for row in versus_rows(f)}
    assert versus["pahi", "1", "best of 4"]["pick_beta"].startswith("+0.75 [")
    assert versus["pahi", "9", "best of 4"]["pick_beta"].startswith("-0.25 [")
    assert versus["pahi", "1", "hpi"]["pick_beta"].startswith("+1.35 ["), "0.8 and 1.9, seed by seed"
    assert ("hpi", "1", "hpi") not in versus


def test_the_best_that_keeps_its_diversity(f: Frontier) -> None:
    assert best_at(f, "pick_beta", 0.5) == ("pahi", 1.0)
    assert best_at(f, "pick_beta", 0.9) == ("pahi", 9.0)
    assert best_at(f, "pick_beta", 0.98) == ("hpi", 1.0)
    assert best_at(f, "pick_beta", 1.2) is None


def test_plots_are_whole_and_say_their_numbers(f: Frontier) -> None:
    for svg in (frontier_svg(f, "oracle"), frontier_svg(f, "pick_alpha"), compute_svg(f, "oracle", 0.9)):
        root = ElementTree.fromstring(svg)
        numbers = [
            float(v) for e in root.iter() for k, v in e.attrib.items() if k in ("cx", "cy", "x", "y", "x1", "y1")
        ]
        assert numbers and all(math.isfinite(v) and -20 <= v <= 860 for v in numbers)
    assert "pahi 1: 0.60, +1.50" in frontier_svg(f, "pick_alpha")
    assert "best of 4: 2.00, +7.50" in compute_svg(f, "oracle", 0.9), "two doublings of the calls"


def test_what_cannot_be_paired_is_refused() -> None:
    one, two = made_up("scale", 1.0, 0, {"scale": 0.1}, {}), made_up("scale", 3.0, 0, {"scale": 0.1}, {})
    other = two.evaluated.slice(0, 10)
    with pytest.raises(PahiError, match="different test prompts"):
        gather(REWARDS, [one, replace(two, evaluated=other)])
    moved = pa.Table.from_pylist([{**r, "score": (r["score"] or 0) + 1} for r in two.scores.to_pylist()], schema=SCORES)
    with pytest.raises(PahiError, match="they are no pairs"):
        gather(REWARDS, [one, replace(two, scores=moved)])


SMALL = [
    "cache.max_train_prompts=4",
    "cache.max_validation_prompts=2",
    "cache.seeds=2",
    "train.predictor=pahi",
    "train.hpi_steps=1",
    "train.steps=1",
    "train.batch_size=2",
    "train.pictures=4",
    "evaluate.prompts=4",
    "evaluate.seeds=2",
    "evaluate.bootstrap=100",
    "threads=1",
]


def test_the_command_trains_measures_and_finds_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [word for item in SMALL for word in ("--set", item)]
    words = ["--root", str(tmp_path / "store"), "--out", str(tmp_path / "out"), *sets]
    whole = [*words, "--predictors", "scale,pahi:2,selected:3", "--betas", "1", "--seeds", "0", "--best-of", "2"]
    whole += ["--candidates", "2,5"]
    assert command.main(whole) == 0
    first = capsys.readouterr()
    text = (tmp_path / "out/frontier.md").read_text()
    assert first.out == text
    words_of_it = (
        "4 test prompts",
        "| scale | 1 |",
        "| pahi | 2 |",
        "| best of 2 | - | 2 |",
        "| selected | of 5 | 1 |",
    )
    for word in (*words_of_it, "clip_gamma, difference"):
        assert word in text
    assert {p.name for p in (tmp_path / "out").glob("*.svg")} == {
        *(f"frontier-{name}.svg" for name in ("pick_alpha", "image_beta", "clip_gamma", "oracle")), "compute.svg"
    }  # fmt: skip
    assert command.main(whole) == 0
    again = capsys.readouterr()
    assert again.out == first.out and again.err.count(": found") == 3
    assert command.main([*words, "--hacking", "--steps", "2", "--seeds", "0"]) == 0
    table = (tmp_path / "out/hacking.md").read_text()
    assert "| off | pooled | pahi | 0 |" in table and "| on | 0 | pahi | 0.5 |" in table


def test_a_setting_may_be_for_one_predictor() -> None:
    words = [
        "--root",
        "unused",
        "--set",
        "train.steps=7",
        "--set",
        "lowrank:train.hidden=64",
        "--set",
        "residual:train.lr=1",
        "--set",
        "pahi/value:train.hidden=32",
    ]
    args = command.parse(words)
    s = {
        kind: command._settings(args, kind, 2.0, 5, baselines=False).train
        for kind in ("pahi", "lowrank", "residual", "pahi/value")
    }
    assert {kind: t.hidden for kind, t in s.items()} == {"pahi": 128, "lowrank": 64, "residual": 16, "pahi/value": 32}
    assert s["residual"].lr == 1 and s["lowrank"].lr == s["pahi"].lr
    assert {kind: (t.predictor, t.estimator) for kind, t in s.items() if "pahi" in kind} == {
        "pahi": ("pahi", "pathwise"), "pahi/value": ("pahi", "value")
    }  # fmt: skip
    assert {(t.beta, t.seed) for t in s.values()} == {(2.0, 5)}
    assert s["lowrank"].steps == s["residual"].steps == s["pahi"].steps + s["pahi"].hpi_steps, "all have the same steps"


def test_its_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--root", str(tmp_path), "--predictors", "scale,magic"]) == 2
    assert capsys.readouterr().err.startswith("error: setting train.predictor") and not list(tmp_path.iterdir())
    assert command.main([]) == 0, "the benchmarks that run by themselves pass it by"
