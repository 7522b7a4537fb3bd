"""pahi/ingest: reads prompt files, cleans and splits them."""

from prefect import flow

from flows.common import DEFAULT, Result, run_one
from pahi.settings import Settings


@flow(name="pahi", flow_run_name="ingest-{settings.name}", persist_result=False)
def ingest(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Reads prompt files, cleans and splits them.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("ingest", settings, with_upstream)
