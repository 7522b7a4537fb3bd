"""Which arms an evaluation has, and which one it is about."""

import pytest

from pahi.evaluation.summary import arm_labels, calls, main_arm
from pahi.settings import load_settings


@pytest.mark.parametrize(
    ("predictor", "arms"),
    [
        ("scale", ["scale"]),
        ("hpi", ["hpi"]),
        ("pahi", ["hpi", "pahi", "pahi_shuffled"]),
        ("residual", ["residual", "residual_shuffled"]),
        ("refined", ["refined", "refined_shuffled"]),
        ("repelled", ["repelled", "repelled_shuffled"]),
        ("mixture", ["mixture", "mixture_shuffled"]),
        ("preserving", ["preserving", "preserving_shuffled"]),
        ("conv", ["conv", "conv_shuffled"]),
        ("lowrank", ["lowrank", "lowrank_shuffled"]),
    ],
)
def test_the_arms_of_a_predictor(predictor: str, arms: list[str]) -> None:
    settings = load_settings(overrides=[f"train.predictor={predictor}", "evaluate.optimise=[10]"])
    names = list(arm_labels(settings))
    assert names == ["standard", *arms, "best_of_4", "optimised_10"]
    assert main_arm(name for name in names) == predictor
    assert [calls(name) for name in names] == [1] * (1 + len(arms)) + [4, 10]


def test_nothing_learned_is_no_arm() -> None:
    assert main_arm(["standard", "best_of_4"]) is None
