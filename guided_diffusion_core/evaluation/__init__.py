"""Scoring of predictions: scores per case and slice, their statistics, calibration, reports, two runs side by side."""
from guided_diffusion_core.evaluation.agreement import (
    TABLE_HEAD,
    Run,
    compare,
    mask_agreement,
    read_summary,
    table_rows,
)
from guided_diffusion_core.evaluation.pictures import ImageSource
from guided_diffusion_core.evaluation.report import write_comparison, write_report
from guided_diffusion_core.evaluation.scores import Surfaces
from guided_diffusion_core.evaluation.summary import evaluate, format_table, write_summary
from guided_diffusion_core.evaluation.upstream import evaluate_upstream, format_upstream

__all__ = [
    "ImageSource", "Run", "Surfaces", "TABLE_HEAD", "compare", "evaluate", "evaluate_upstream", "format_table",
    "format_upstream", "mask_agreement", "read_summary", "table_rows", "write_comparison",
    "write_report", "write_summary",
]
