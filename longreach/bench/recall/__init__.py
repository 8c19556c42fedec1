"""The tables of the papers on recall: systems beside each other on the synthetic tasks, see docs/recall.md."""

from longreach.bench.recall.cells import Cell, CellResult, RecallOptions, configure, read_results, run_cell
from longreach.bench.recall.published import PUBLISHED, PublishedScore
from longreach.bench.recall.report import markdown, tables, write_files
from longreach.bench.recall.systems import SYSTEMS, model_config
from longreach.bench.recall.tasks import TASKS, RecallKind, kind_of

__all__ = [
    "PUBLISHED",
    "SYSTEMS",
    "TASKS",
    "Cell",
    "CellResult",
    "PublishedScore",
    "RecallKind",
    "RecallOptions",
    "configure",
    "kind_of",
    "markdown",
    "model_config",
    "read_results",
    "run_cell",
    "tables",
    "write_files",
]
