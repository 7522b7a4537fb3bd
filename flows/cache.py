"""pahi/cache: pins the models and scores the standard Gaussian."""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, run_one
from pahi.settings import Settings


@flow(flow_run_name="cache-{settings.name}", **FLOW)
def cache(with_upstream: bool = False, fetch_only: bool = False, settings: Settings = DEFAULT) -> Result:
    """Pins the models and scores the standard Gaussian.

    Args:
        with_upstream: Run the stages that this one reads first, where they are not finished.
        fetch_only: Only bring the models into the store, so that workers start without the Hub.
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    if fetch_only:
        from pahi.stages import fetch_models

        return {"stage": "cache", "models": fetch_models(settings)}
    return run_one("cache", settings, with_upstream)
