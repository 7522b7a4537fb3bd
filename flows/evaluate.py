"""pahi/evaluate: compares the arms on prompts that training never saw."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="evaluate-{settings.name}", **FLOW)
def evaluate(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Compares the arms on prompts that training never saw.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("evaluate", settings, with_upstream)
