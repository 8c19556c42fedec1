"""The sequence systems, one file each."""

from longreach.mixers.attention import Attention
from longreach.mixers.base import OptimHint, SequenceMixer, State, map_state, select_rows

__all__ = ["Attention", "OptimHint", "SequenceMixer", "State", "map_state", "select_rows"]
