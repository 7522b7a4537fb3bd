"""pahi/generate: draws pictures in bulk."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="generate-{settings.name}", **FLOW)
def generate(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Draws pictures in bulk.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("generate", settings, with_upstream)
