"""pahi/curate: selects and publishes the dataset."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="curate-{settings.name}", **FLOW)
def curate(with_upstream: bool = False, settings: Settings = DEFAULT) -> Result:
    """Selects and publishes the dataset.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    return run_one("curate", settings, with_upstream)
