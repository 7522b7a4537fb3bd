"""pahi/pipeline: every stage in order, then the report.

The stages are tasks of one flow run in one process: a finished stage costs next to nothing.
"""

from prefect import flow

from flows.common import DEFAULT, FLOW, Result, end_if_lost_too_often, report_task, stage_task
from pahi.settings import Settings


@flow(flow_run_name="pipeline-{settings.name}", **FLOW)
def pipeline(settings: Settings = DEFAULT) -> list[Result]:
    """Every stage in order, then the report.

    Args:
        settings: The run's settings; `pahi presets NAME` prints a preset's.
    """
    from pahi.stages import STAGES

    end_if_lost_too_often()
    results = [stage_task.with_options(name=stage)(stage, settings, pipeline=True) for stage in STAGES]
    return [*results, report_task(settings, results)]
