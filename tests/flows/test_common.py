"""What the flows add to the stages: names, retries, and artifacts that cannot hurt."""

import pytest
from prefect.states import Completed, Failed

from flows import common
from pahi.errors import StageFailed, UserError


class State:
    def __init__(self, error):
        self.error = error

    def result(self):
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "retried"),
    [(UserError("wrong"), False), (StageFailed("a shard"), True), (ConnectionError("store"), True), (None, False)],
)
def test_a_users_mistake_is_not_retried(error, retried):
    assert common.worth_retrying(None, None, State(error)) is retried


def test_prefects_own_states_are_understood():
    assert not common.worth_retrying(None, None, Failed(data=UserError("wrong")))
    assert common.worth_retrying(None, None, Failed(data=OSError("store")))
    assert not common.worth_retrying(None, None, Completed(data=1))


def test_artifact_keys_are_what_prefect_takes():
    assert common.artifact_key("My.data_set", "train", "progress") == "my-data-set-train-progress"


def test_progress_reaches_the_listener_and_throttles_the_artifact(monkeypatch):
    made, updated, heard = [], [], []
    monkeypatch.setattr(common, "create_progress_artifact", lambda percent, **_: made.append(percent) or len(made))
    monkeypatch.setattr(common, "update_progress_artifact", lambda _id, **values: updated.append(values["progress"]))
    with common.listening(lambda *step: heard.append(step)):
        progress = common._Progress("demo")
        for done in range(101):
            progress("cache", done, 100, "")
        progress.close()
    assert len(heard) == 101
    assert made == [0.0]
    assert updated == [100.0, 100.0]  # the last step, and the end


def test_the_artifact_says_what_remains(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(common, "create_progress_artifact", lambda percent, **v: said.append(v["description"]) or 1)
    monkeypatch.setattr(common, "update_progress_artifact", lambda _id, **v: said.append(v["description"]))
    progress = common._Progress("demo")
    progress("train", 1, 100, "pick_alpha +0.10")
    now[0] = 20.0
    progress("train", 11, 100, "pick_alpha +0.20")
    assert said == [
        "train of demo: 1 of 100, pick_alpha +0.10",
        "train of demo: 11 of 100, 3 min left, pick_alpha +0.20",
    ]
