"""What a person sees at the end of a run: one self-contained HTML page."""

from pahi.reports.page import build_report

__all__ = ["build_report"]
