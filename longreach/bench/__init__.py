"""Measuring: what every system and every operator costs in time and memory, as tables, files and plots."""

from longreach.bench.crossings import Crossing, crossings
from longreach.bench.mixer_costs import CostOptions, MixerCost, measure_mixers, mixer_names
from longreach.bench.operator_case import OperatorCase, on_torch
from longreach.bench.operator_cases import operator_cases
from longreach.bench.operator_costs import OperatorCost, OperatorOptions, measure_operators, select_cases
from longreach.bench.operator_report import allocator, operator_table, write_json, write_operator_plot
from longreach.bench.report import cost_tables, write_csv, write_plot

__all__ = [
    "CostOptions",
    "Crossing",
    "MixerCost",
    "OperatorCase",
    "OperatorCost",
    "OperatorOptions",
    "allocator",
    "cost_tables",
    "crossings",
    "measure_mixers",
    "measure_operators",
    "mixer_names",
    "on_torch",
    "operator_cases",
    "operator_table",
    "select_cases",
    "write_csv",
    "write_json",
    "write_operator_plot",
    "write_plot",
]
