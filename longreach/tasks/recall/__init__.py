"""Synthetic tasks that need a memory, see `longreach.tasks.recall.synthetic` and docs/recall.md."""

from longreach.tasks.recall.addition import Addition
from longreach.tasks.recall.associative_recall import AssociativeRecall
from longreach.tasks.recall.counting import Counting
from longreach.tasks.recall.draws import Draws
from longreach.tasks.recall.induction_head import InductionHead
from longreach.tasks.recall.linear_functions import LinearFunctions
from longreach.tasks.recall.majority import Majority
from longreach.tasks.recall.multi_query_recall import MultiQueryRecall
from longreach.tasks.recall.synthetic import SyntheticTask, TokenTask

__all__ = [
    "Addition",
    "AssociativeRecall",
    "Counting",
    "Draws",
    "InductionHead",
    "LinearFunctions",
    "Majority",
    "MultiQueryRecall",
    "SyntheticTask",
    "TokenTask",
]
