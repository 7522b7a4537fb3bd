"""pahi/ingest: reads prompt files, cleans and splits them."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="ingest-{settings.name}", **FLOW)
def ingest(with_upstream: bool = False, settings: Settings = DEFAULT) -> Result:
    """Reads prompt files, cleans and splits them.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    return run_one("ingest", settings, with_upstream)
