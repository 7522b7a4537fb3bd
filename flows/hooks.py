"""What a deployed run says when it ends badly: one message with what happened, where its log is, how to go on."""

import inspect
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.utilities.urls import url_for

from pahi.errors import UserError
from pahi.explain import nearest

# The same mistake the next time: nothing of the run's work has begun.
MISTAKES = (UserError, ParameterTypeError, ParameterBindError, SignatureMismatchError)


def tell(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Prefect's hook on failure, crash and cancellation. A run of the command line says it there."""
    if flow_run.deployment_id is not None:
        flow_run_logger(flow_run, flow).error(message(flow_run, state, list(inspect.signature(flow.fn).parameters)))


def message(flow_run: FlowRun, state: State[Any], known: list[str]) -> str:
    """`train-demo failed: <reason>. Its log: <place>. To go on: <command>`, in one line.

    Args:
        flow_run: The run that has ended.
        state: How it ended.
        known: The flow's parameters, for a run that was given others.
    """
    error = _error(state)
    # A run that was given such a parameter crashes before Prefect's engine begins, and says nothing of why.
    misnamed = unknown(flow_run, known)
    reason = misnamed or " ".join(str(error or state.message or "").split()).rstrip(".") or "no reason was given"
    page = url_for(flow_run)
    log = f"`prefect flow-run logs {flow_run.id}`" + (f" or {page}" if page else "")
    if misnamed or isinstance(error, MISTAKES):
        go_on = "mend that and start it again; it was not retried, and what is finished is kept"
    else:
        go_on = f"`prefect flow-run retry {flow_run.id}`; what is finished is found, not run again"
    # The hook runs while the state is Cancelling, and is read afterwards.
    what = "cancelled" if state.is_cancelling() else (state.name or state.type.value).lower()
    return f"{flow_run.name} {what}: {reason}. Its log: {log}. To go on: {go_on}"


def unknown(flow_run: FlowRun, known: list[str]) -> str:
    """The parameters that the flow does not have: Prefect's server lets them through, and the run ends at once."""
    every = f"; it has {', '.join(known)}"
    wrong = [name for name in flow_run.parameters if name not in known]
    return "; ".join(f"unknown parameter {name!r}{nearest(name, known) or every}" for name in wrong)


def _error(state: State[Any]) -> BaseException | None:
    """What the run raised, where this process still holds it."""
    if not state.is_failed() or state.data is None:
        return None
    try:
        found = state.result(raise_on_failure=False)
    except Exception:
        return None
    return found if isinstance(found, BaseException) else None
