"""Measuring on a GPU: its peaks, operators beside torch's own, whole models, within a few minutes."""

from longreach.bench.gpu.cells import Result
from longreach.bench.gpu.clock import Meter
from longreach.bench.gpu.measure import SECTIONS, Plan, check_sections, measure_apart, measure_here
from longreach.bench.gpu.report import tables, write_report, write_results
from longreach.bench.gpu.sizes import Sizes

__all__ = [
    "SECTIONS",
    "Meter",
    "Plan",
    "Result",
    "Sizes",
    "check_sections",
    "measure_apart",
    "measure_here",
    "tables",
    "write_report",
    "write_results",
]
