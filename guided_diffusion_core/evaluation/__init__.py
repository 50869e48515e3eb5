"""Scoring of predictions: scores per case and slice, their statistics, calibration, two runs side by side.

`report` and `pictures`, which draw, are imported by who needs them.
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
