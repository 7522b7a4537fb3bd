"""What remains is told from the steps of this run alone."""

import pytest

from pahi import pace
from pahi.display import Display
from pahi.pace import Pace, span


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("first", [0, 400])
def test_a_steady_pace_is_known_after_one_step_resumed_or_not(clock: list[float], first: int) -> None:
    steps = Pace()
    assert steps.left(first, 1000) is None and steps.note(first, 1000) == ""
    for done in (first + 1, first + 10, 999):
        clock[0] = 100.0 + 2.0 * (done - first)
        assert steps.left(done, 1000) == pytest.approx(2.0 * (1000 - done))
    assert steps.note(999, 1000) == "2 s left" and steps.note(1000, 1000) == ""


def test_nothing_is_told_of_work_without_an_end(clock: list[float]) -> None:
    steps = Pace()
    assert steps.left(0, 0) is None
    clock[0] += 5
    assert steps.left(7, 0) is None


def test_spans_are_what_people_read() -> None:
    assert [span(s) for s in (0.2, 40, 89, 90, 3600, 5399, 7500)] == [
        "1 s", "40 s", "89 s", "2 min", "60 min", "1 h 30 min", "2 h 5 min"
    ]  # fmt: skip


def test_lines_of_a_log_say_what_remains(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Display() as display:
        display("train", 1, 100, "loss +0.10")
        clock[0] += 20
        display("train", 11, 100, "loss +0.05")
    assert capsys.readouterr().out.splitlines() == [
        "train     1/100  loss +0.10",
        "train     11/100  3 min left  loss +0.05",
    ]
