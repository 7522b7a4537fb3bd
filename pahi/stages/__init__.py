"""One function a stage: settings and upstream manifests in, output manifest out."""

from pahi.stages.run import STAGES, run_all, run_stage, write_report

__all__ = ["STAGES", "run_all", "run_stage", "write_report"]
