"""Scoring of predictions: scores per case and slice, their statistics, calibration, comparison of two runs.

`report` and `pictures` need the packages for drawing. So they are not imported here.
"""

from guided_diffusion_core.evaluation.agreement import (
    TABLE_HEAD,
    Run,
    compare,
    mask_agreement,
    read_summary,
    table_rows,
)
from guided_diffusion_core.evaluation.scores import Surfaces
from guided_diffusion_core.evaluation.summary import evaluate, format_table, write_summary
from guided_diffusion_core.evaluation.upstream import evaluate_upstream, format_upstream

__all__ = [
    "Run",
    "Surfaces",
    "TABLE_HEAD",
    "compare",
    "evaluate",
    "evaluate_upstream",
    "format_table",
    "format_upstream",
    "mask_agreement",
    "read_summary",
    "table_rows",
    "write_summary",
]
