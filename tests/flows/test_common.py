"""What the flows add to the stages: retries, timeouts, and what a run says when it ends badly."""

import uuid

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed

from flows import common, hooks
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


@pytest.mark.parametrize(("hours", "seconds"), [("", None), ("2", 7200.0), (" 0.5 ", 1800.0)])
def test_a_run_ends_after_the_hours_that_the_deployment_names(monkeypatch, hours, seconds):
    monkeypatch.setenv("PAHI_TIMEOUT_HOURS", hours)
    assert common.timeout_seconds() == seconds


@pytest.mark.parametrize("hours", ["soon", "0", "-1", "nan"])
def test_hours_that_are_none_are_one_line(monkeypatch, hours):
    monkeypatch.setenv("PAHI_TIMEOUT_HOURS", hours)
    with pytest.raises(UserError, match="PAHI_TIMEOUT_HOURS"):
        common.timeout_seconds()


FLOW_RUN = FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="train-demo", deployment_id=uuid.uuid4())


@pytest.mark.parametrize(
    ("state", "says", "go_on"),
    [
        (Failed(data=UserError("no such file.\nLook there")), "failed: no such file. Look there. ", "mend that"),
        (Failed(data=OSError("the store is away")), "failed: the store is away. ", "prefect flow-run retry"),
        (Crashed(message="the process got SIGKILL"), "crashed: the process got SIGKILL. ", "prefect flow-run retry"),
        (Cancelled(message="by a person"), "cancelled: by a person. ", "prefect flow-run retry"),
        (Cancelling(message="by a person"), "cancelled: by a person. ", "prefect flow-run retry"),
        (Failed(name="TimedOut", message="exceeded 3 second(s)"), "timedout: exceeded 3 ", "prefect flow-run retry"),
        (Crashed(), "crashed: no reason was given. ", "prefect flow-run retry"),
    ],
)
def test_a_bad_end_is_one_message_with_reason_log_and_way_on(state, says, go_on):
    line = hooks.message(FLOW_RUN, state)
    assert line.startswith(f"train-demo {says}")
    assert "\n" not in line
    assert f"prefect flow-run logs {FLOW_RUN.id}" in line
    assert go_on in line


def test_the_command_line_is_not_told_twice(monkeypatch):
    told = []
    monkeypatch.setattr(hooks, "flow_run_logger", lambda *_: type("Log", (), {"error": staticmethod(told.append)}))
    hooks.tell(None, FLOW_RUN.model_copy(update={"deployment_id": None}), Failed(data=OSError("away")))
    assert told == []
    hooks.tell(None, FLOW_RUN, Failed(data=OSError("away")))
    assert len(told) == 1
