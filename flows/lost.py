"""A run whose machine was lost goes back to the queue (infra/automations.yaml), but not for ever."""

from itertools import takewhile
from typing import Any

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from pahi.errors import UserError

LOST = "Its machine fell silent"  # how the automation's message begins
IN_A_ROW = 3


def end_if_lost_too_often() -> None:
    """Raises UserError where this run lost its machine several times in a row: the next would be lost as well.

    Whoever retries it by hand begins the count anew.
    """
    if (runtime.flow_run.run_count or 0) <= IN_A_ROW:
        return
    with get_client(sync_client=True) as client:
        times = lost_in_a_row(client.read_flow_run_states(runtime.flow_run.id))
    if times >= IN_A_ROW:
        raise UserError(
            f"its machine was lost {times} times in a row, most often for want of memory: look at the logs of run and "
            "machine, lower batch_size of the stage"
        )


def lost_in_a_row(states: list[State[Any]]) -> int:
    """How often the run was queued because its machine fell silent, since it was last queued for another reason."""
    queued = [state for state in sorted(states, key=lambda state: state.timestamp) if state.is_scheduled()]
    return len(list(takewhile(lambda state: (state.message or "").startswith(LOST), reversed(queued))))
