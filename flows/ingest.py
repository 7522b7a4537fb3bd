"""pahi/ingest: reads prompt files, cleans and splits them."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="ingest-{settings.name}", **FLOW)
def ingest(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Reads prompt files, cleans and splits them.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("ingest", settings, with_upstream)
