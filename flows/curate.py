"""pahi/curate: selects and publishes the dataset."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="curate-{settings.name}", **FLOW)
def curate(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Selects and publishes the dataset.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("curate", settings, with_upstream)
