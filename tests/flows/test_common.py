"""What the flows add to the stages: retries, timeouts, and what a run says when it ends badly."""

import uuid

import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ParameterTypeError, SignatureMismatchError
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Failed, Running, Scheduled
from services import ROOT

from flows import common, hooks, lost
from flows.train import train
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
        (Failed(data=ParameterTypeError("invalid:\n - train.lr: 0")), "failed: invalid: - train.lr", "mend that"),
    ],
)
def test_a_bad_end_is_one_message_with_reason_log_and_way_on(state, says, go_on):
    line = hooks.message(FLOW_RUN, state, ["settings", "with_upstream"])
    assert line.startswith(f"train-demo {says}")
    assert "\n" not in line
    assert f"prefect flow-run logs {FLOW_RUN.id}" in line
    assert go_on in line


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"settings": {}, "with_upstraem": True}, "unknown parameter 'with_upstraem'; did you mean 'with_upstream'?"),
        ({"steps": 5}, "unknown parameter 'steps'; it has settings, with_upstream"),
    ],
)
def test_a_parameter_that_the_flow_does_not_have_is_named(given, says):
    with pytest.raises(SignatureMismatchError) as wrong:
        train.validate_parameters(given)
    run = FLOW_RUN.model_copy(update={"parameters": given})
    for state in (Failed(data=wrong.value), Crashed(message="Process exited with status code: 1.")):
        line = hooks.message(run, state, ["settings", "with_upstream"])
        assert says in line and "mend that" in line


LOST = lost.LOST + "; it continues on another worker."


@pytest.mark.parametrize(
    ("messages", "times"),
    [
        ([None], 0),
        ([None, LOST], 1),
        ([None, LOST, LOST, LOST], 3),
        ([None, LOST, LOST, "Retried via CLI", LOST], 1),
        ([None, LOST, LOST, "Retried via CLI"], 0),
    ],
)
def test_a_lost_machine_is_counted_until_someone_retries_by_hand(messages, times):
    states = []
    for message in messages:
        states += [AwaitingRetry(message=message) if message == LOST else Scheduled(message=message), Running()]
    assert lost.lost_in_a_row(states) == times
    assert lost.lost_in_a_row(list(reversed(states))) == times, "the server may give them in any order"


def test_a_run_that_lost_three_machines_in_a_row_ends(monkeypatch):
    class Client:
        states = [Scheduled(), *(state for _ in range(3) for state in (AwaitingRetry(message=LOST), Running()))]
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda *_: None  # noqa: E731
        read_flow_run_states = lambda self, _: self.states  # noqa: E731

    monkeypatch.setattr(lost, "get_client", lambda **_: Client())
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "4")
    with pytest.raises(UserError, match="lost 3 times in a row"):
        lost.end_if_lost_too_often()
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", "3")
    lost.end_if_lost_too_often()


def test_the_automation_says_what_the_count_looks_for():
    automation = yaml.safe_load((ROOT / "infra" / "automations.yaml").read_text())["automations"][0]
    assert automation["actions"][0]["message"].startswith(lost.LOST)


def test_the_command_line_is_not_told_twice(monkeypatch):
    told = []
    monkeypatch.setattr(hooks, "flow_run_logger", lambda *_: type("Log", (), {"error": staticmethod(told.append)}))
    hooks.tell(train, FLOW_RUN.model_copy(update={"deployment_id": None}), Failed(data=OSError("away")))
    assert told == []
    hooks.tell(train, FLOW_RUN, Failed(data=OSError("away")))
    assert len(told) == 1
