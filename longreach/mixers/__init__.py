"""The sequence systems, one file each."""

from longreach.mixers.attention import Attention
from longreach.mixers.base import OptimHint, SequenceMixer, State, map_state, select_rows
from longreach.mixers.dss import DSS, DSSOptions
from longreach.mixers.hyena import Hyena
from longreach.mixers.implicit_filter import FilterOptions
from longreach.mixers.linear_transformer import LinearTransformer
from longreach.mixers.s4d import S4D, S4DOptions

__all__ = [
    "DSS",
    "S4D",
    "Attention",
    "DSSOptions",
    "FilterOptions",
    "Hyena",
    "LinearTransformer",
    "OptimHint",
    "S4DOptions",
    "SequenceMixer",
    "State",
    "map_state",
    "select_rows",
]
