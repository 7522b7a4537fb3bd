"""pahi/train: learns the noise."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="train-{settings.name}", **FLOW)
def train(with_upstream: bool = False, settings: Settings = DEFAULT) -> Result:
    """Learns the noise.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    return run_one("train", settings, with_upstream)
