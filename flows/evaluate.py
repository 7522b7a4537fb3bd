"""pahi/evaluate: compares the arms on prompts that training never saw."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="evaluate-{settings.name}", **FLOW)
def evaluate(with_upstream: bool = False, settings: Settings = DEFAULT) -> Result:
    """Compares the arms on prompts that training never saw.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    return run_one("evaluate", settings, with_upstream)
