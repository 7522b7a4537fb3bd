"""What a deployed run says when it ends badly: one message with what happened, where its log is, how to go on."""

from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for

from pahi.errors import UserError


def tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook on failure, crash and cancellation. A run of the command line says it there."""
    if flow_run.deployment_id is not None:
        flow_run_logger(flow_run, flow).error(message(flow_run, state))


def message(flow_run: FlowRun, state: State[Any]) -> str:
    """`train-demo failed: <reason>. Its log: <place>. To go on: <command>`, in one line."""
    error = _error(state)
    reason = " ".join(str(error or state.message or "").split()).rstrip(".") or "no reason was given"
    page = url_for(flow_run)
    log = f"`prefect flow-run logs {flow_run.id}`" + (f" or {page}" if page else "")
    if isinstance(error, UserError):
        go_on = "mend that and start it again; it was not retried, and what is finished is kept"
    else:
        go_on = f"`prefect flow-run retry {flow_run.id}`; what is finished is found, not run again"
    # The hook runs while the state is Cancelling, and is read afterwards.
    what = "cancelled" if state.is_cancelling() else (state.name or state.type.value).lower()
    return f"{flow_run.name} {what}: {reason}. Its log: {log}. To go on: {go_on}"


def _error(state: State[Any]) -> BaseException | None:
    """What the run raised, where this process still holds it."""
    if not state.is_failed() or state.data is None:
        return None
    try:
        found = state.result(raise_on_failure=False)
    except Exception:
        return None
    return found if isinstance(found, BaseException) else None
