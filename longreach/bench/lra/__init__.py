"""The Long Range Arena: every system on every task, its tables and its speed, see docs/lra.md."""

from longreach.bench.lra.published import PUBLISHED, PUBLISHED_SPEED, PublishedRow, PublishedSpeed
from longreach.bench.lra.recipes import Recipe, Size
from longreach.bench.lra.report import markdown, tables, write_files
from longreach.bench.lra.runs import ArenaResult, read_results, run_system
from longreach.bench.lra.speed import LENGTHS, SpeedCell, SpeedFile, SpeedOptions, measure_speed, read_speed
from longreach.bench.lra.speed_report import speed_markdown, speed_tables, write_speed
from longreach.bench.lra.systems import SYSTEMS, RunOptions, config_text, configure, recipe_of
from longreach.bench.lra.tasks import ARENA, TASKS, task_of

__all__ = [
    "ARENA",
    "LENGTHS",
    "PUBLISHED",
    "PUBLISHED_SPEED",
    "SYSTEMS",
    "TASKS",
    "ArenaResult",
    "PublishedRow",
    "PublishedSpeed",
    "Recipe",
    "RunOptions",
    "Size",
    "SpeedCell",
    "SpeedFile",
    "SpeedOptions",
    "config_text",
    "configure",
    "markdown",
    "measure_speed",
    "read_results",
    "read_speed",
    "recipe_of",
    "run_system",
    "speed_markdown",
    "speed_tables",
    "tables",
    "task_of",
    "write_files",
    "write_speed",
]
