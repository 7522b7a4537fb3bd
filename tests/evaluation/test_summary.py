"""Which arms an evaluation has, and which one it is about."""

from typing import get_args

import pytest

from pahi.evaluation.summary import arm_labels, calls, flags, main_arm
from pahi.predictors.base import kinds
from pahi.settings import Train, load_settings


@pytest.mark.parametrize(
    ("predictor", "arms"),
    [
        ("scale", ["scale"]),
        ("hpi", ["hpi"]),
        ("pahi", ["hpi", "pahi", "pahi_shuffled"]),
        ("residual", ["residual", "residual_shuffled"]),
        ("refined", ["refined", "refined_shuffled"]),
        ("selected", ["selected", "selected_shuffled"]),
        ("mixture", ["mixture", "mixture_shuffled"]),
        ("preserving", ["preserving", "preserving_shuffled"]),
        ("lowrank", ["lowrank", "lowrank_shuffled"]),
    ],
)
def test_the_arms_of_a_predictor(predictor: str, arms: list[str]) -> None:
    settings = load_settings(overrides=[f"train.predictor={predictor}", "evaluate.optimise=[10]"])
    names = list(arm_labels(settings))
    assert names == ["standard", *arms, "best_of_4", "optimised_10"]
    assert main_arm(name for name in names) == predictor
    assert [calls(name) for name in names] == [1] * (1 + len(arms)) + [4, 10]


def test_whatever_can_be_trained_has_a_name_of_its_own() -> None:
    trainable = get_args(Train.model_fields["predictor"].annotation)
    known = {name: kinds()[name] for name in ("standard", *trainable)}
    assert len({kind.name for kind in known.values()}) == len({kind.arm for kind in known.values()}) == len(known)


def test_nothing_learned_is_no_arm() -> None:
    assert main_arm(["standard", "best_of_4"]) is None


GOOD = {"value": 0.5, "low": 0.4, "high": 0.6}


def arm(name: str, **figures: object) -> dict[str, object]:
    rewards = {
        "alpha": {"role": "train", "uplift": GOOD},
        "beta": {"role": "held_out", "uplift": figures.pop("held_out", GOOD)},
    }
    plain = {"diversity": 0.9, "feature_diversity": 0.9, "noise_norm": 1.0, "noise_correlation": 0.0}
    return {"arm": name, "rewards": rewards, **plain, **figures}


@pytest.mark.parametrize(
    ("figures", "warning"),
    [
        ({}, ""),
        ({"held_out": {"value": -0.5, "low": -0.6, "high": -0.4}}, "reward hacking"),
        ({"held_out": {"value": 0.1, "low": -0.1, "high": 0.3}}, "beta (held_out) is within chance"),
        ({"diversity": 0.5}, "differ only 0.50 times as much as before, in pixels"),
        ({"feature_diversity": 0.6}, "differ only 0.60 times as much as before, in features"),
        ({"noise_norm": 1.2}, "1.20 times the norm"),
        ({"noise_correlation": -0.3}, "neighbours correlate by -0.30"),
        ({"feature_diversity": None}, ""),
    ],
)
def test_each_way_to_fail_has_its_warning(figures: dict[str, object], warning: str) -> None:
    shuffled = arm("pahi_shuffled") | {"rewards": {n: {"role": "train", "uplift": None} for n in ("alpha", "beta")}}
    found = flags([arm("standard"), arm("pahi", **figures), shuffled])
    assert any(warning in flag for flag in found) if warning else found == []


def test_a_predictor_that_ignores_the_prompt_is_named() -> None:
    assert flags([arm("pahi"), arm("pahi_shuffled")]) == [
        "PAHI ignores the prompt: shuffled prompts do as well in alpha"
    ]


def test_where_nothing_after_hpi_was_better_it_is_said() -> None:
    def scored(name: str, mean: float) -> dict[str, object]:
        own = arm(name)
        own["rewards"] = {n: {**reward, "mean": mean} for n, reward in own["rewards"].items()}  # type: ignore[attr-defined]
        return own

    assert any("PAHI is HPI here" in flag for flag in flags([scored("hpi", 0.5), scored("pahi", 0.5)]))
    assert flags([scored("hpi", 0.4), scored("pahi", 0.5)]) == flags([scored("hpi", 0.5)]) == []
