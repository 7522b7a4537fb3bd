"""pahi/train: learns the noise."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="train-{settings.name}", **FLOW)
def train(settings: Settings = DEFAULT, with_upstream: bool = False) -> Result:
    """Learns the noise.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
        with_upstream: Run the stages that this one reads first, where they are not finished.
    """
    return run_one("train", settings, with_upstream)
