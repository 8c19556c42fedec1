"""Measuring: what every system costs in time and memory, as tables, CSV files and plots."""

from longreach.bench.mixer_costs import CostOptions, MixerCost, measure_mixers, mixer_names
from longreach.bench.report import cost_tables, write_csv, write_plot

__all__ = [
    "CostOptions",
    "MixerCost",
    "cost_tables",
    "measure_mixers",
    "mixer_names",
    "write_csv",
    "write_plot",
]
