"""One function a stage: settings and upstream manifests in, output manifest out."""

from pahi.stages.run import STAGES, fetch_models, plan_curation, publish, run_all, run_stage, sample_grid, write_report

__all__ = [
    "STAGES",
    "fetch_models",
    "plan_curation",
    "publish",
    "run_all",
    "run_stage",
    "sample_grid",
    "write_report",
]
