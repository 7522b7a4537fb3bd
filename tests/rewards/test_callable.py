"""A function of one's own as a judge: what it is given, what it may answer, and what happens when it fails or hangs."""

import threading
import time
from pathlib import Path

import pytest
import torch

from pahi.errors import PahiError, UserError
from pahi.rewards import Reward, load_reward
from pahi.rewards.callable import limited
from pahi.rewards.load import reward_hash
from pahi.settings import RewardModel

CPU = torch.device("cpu")
MODULE = """
import time
import numpy as np
CONSTANT = 3
calls = []
def brightness(images, prompts):
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert np.allclose(images * 255, np.round(images * 255), atol=1e-4)
    return [np.nan if p == "?" else i.mean() for i, p in zip(images, prompts)]
def too_few(images, prompts):
    return [0.0]
def words(images, prompts):
    return prompts
def service(images, prompts):
    calls.append(len(prompts))
    if len(calls) < 3:
        raise ConnectionError("503\\nService Unavailable")
    return [len(p) for p in prompts]
def slow_at_first(images, prompts):
    calls.append(len(prompts))
    time.sleep(5 if len(calls) == 1 else 0)
    return [0.5] * len(prompts)
"""


@pytest.fixture(autouse=True)
def judge_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge_of_mine.py").write_text(MODULE)
    (tmp_path / "broken_judge.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("pahi.rewards.callable.FIRST_WAIT", 0.01)
    for name in ("judge_of_mine", "broken_judge"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)


def settings(target: str, **more: object) -> RewardModel:
    return RewardModel.model_validate({"name": "mine", "kind": "callable", "id": target, **more})


def judge(target: str, **more: object) -> Reward:
    return load_reward(settings(target, **more), CPU)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message and "mine" in message
    return message


def test_it_judges() -> None:
    reward = judge("judge_of_mine:brightness")
    assert not reward.differentiable and reward.prepare(["a"]) == {}
    images = torch.tensor([[-0.5, 0.2], [0.5, 1.5]])[:, None, None, :].expand(2, 3, 4, 2).requires_grad_()
    got = reward.score(images, {}, ["a", "b"])
    assert torch.allclose(got, torch.tensor([0.1, (128 / 255 + 1) / 2]))
    assert not got.requires_grad and reward.score(images, {}, ["?", "b"]).isnan().tolist() == [True, False]


@pytest.mark.parametrize(("function", "complaint"), [("too_few", "expected 2 scores"), ("words", "expected numbers")])
def test_a_wrong_answer_is_one_line(function: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        judge(f"judge_of_mine:{function}").score(torch.zeros(2, 3, 4, 4), {}, ["a", "b"])
    one_line(error.value)


def calls() -> list[int]:
    import judge_of_mine  # type: ignore[import-not-found]

    return judge_of_mine.calls


def test_it_is_called_again_and_gets_small_batches() -> None:
    reward = judge("judge_of_mine:service", retries=2, batch_size=2)
    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    assert reward.score(torch.zeros(5, 3, 2, 2), {}, prompts).tolist() == [1, 2, 3, 4, 5]
    assert calls() == [2, 2, 2, 2, 1], "two failures of the first batch, then three batches in order"


def test_it_is_not_called_more_often_than_was_said() -> None:
    with pytest.raises(PahiError, match="failed, 2 times: ConnectionError: 503") as error:
        judge("judge_of_mine:service", retries=1).score(torch.zeros(1, 3, 2, 2), {}, ["a"])
    one_line(error.value)
    assert not isinstance(error.value, UserError) and calls() == [1, 1]


def test_a_call_that_hangs_is_given_up_and_made_again() -> None:
    reward, started = judge("judge_of_mine:slow_at_first", timeout=0.2, retries=1), time.monotonic()
    assert reward.score(torch.zeros(1, 3, 2, 2), {}, ["a"]).tolist() == [0.5]
    assert time.monotonic() - started < 3
    with pytest.raises(PahiError, match=r"no answer within 0\.2 seconds"):
        calls().clear()
        judge("judge_of_mine:slow_at_first", timeout=0.2).score(torch.zeros(1, 3, 2, 2), {}, ["a"])


def test_without_a_limit_the_call_runs_in_the_callers_thread() -> None:
    assert limited(threading.get_ident, None) == threading.get_ident() != limited(threading.get_ident, 5.0)


def test_an_edited_judge_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = reward_hash(settings("judge_of_mine:brightness"))
    assert before == judge("judge_of_mine:brightness").hash != reward_hash(settings("judge_of_mine:too_few"))
    assert before == reward_hash(settings("judge_of_mine:brightness", retries=3, timeout=2, batch_size=5))
    (tmp_path / "judge_of_mine.py").write_text(MODULE + "# edited\n")
    monkeypatch.delitem(__import__("sys").modules, "judge_of_mine")
    assert reward_hash(settings("judge_of_mine:brightness")) != before


@pytest.mark.parametrize(
    "target",
    [
        "judge_of_mine:absent",
        "judge_of_mine:CONSTANT",
        "judge_of_mine",
        "no_such_module_here:f",
        "judge_of_mine.below:f",
        "broken_judge:f",
        ".judge_of_mine:f",
        ":f",
        ":",
        "",
    ],
)
def test_a_callable_that_is_none_is_one_line(target: str) -> None:
    with pytest.raises(UserError) as error:
        judge(target)
    one_line(error.value)
