"""The tasks of the Long Range Arena as configurations, read as its own code reads them or as that of S4 does.

`packages` (longreach.tasks.SourcePackages) is none of them: it needs no data but Python's own, and no paper has it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from longreach import tasks
from longreach.errors import InputError

Config = dict[str, Any]
"""What a section of a configuration file holds."""
Pipeline = Literal["arena", "s4"]
"""`arena`: bytes and pixels as tokens (https://github.com/google-research/long-range-arena).  `s4`: characters with one
more token behind them, and pixels as numbers (https://github.com/state-spaces/s4)."""
T = TypeVar("T")


class Reading(NamedTuple):
    """What a model has to be built for."""

    n_classes: int
    length: int
    """The longest sequence."""
    inputs: Literal["tokens", "features"]
    pair: bool = False


class ArenaTask(NamedTuple):
    """A column of the tables."""

    title: str
    build: type[tasks.Classification]
    readings: dict[Pipeline, Reading]
    arguments: dict[Pipeline, Config]
    made: bool = False
    """Whether its data are made here, so that there is a table without `--data`."""
    lengths_differ: bool = False
    """Whether some sequences are longer than others."""


def _text(unit: str, length: int, options: Mapping[str, object] = {}) -> Config:
    return {"text": {"unit": unit, "max_length": length, **options}}


def _images(resolution: int) -> dict[Pipeline, Config]:
    recipe = {"recipe": {"resolution": resolution, "difficulty": "contour_length_14", "images": 200_000}}
    return {"arena": {**recipe, "pixels": "tokens"}, "s4": {**recipe, "pixels": "unit"}}


def _same(reading: Reading) -> dict[Pipeline, Reading]:
    return {"arena": reading, "s4": reading}


def _pixels(n_classes: int, length: int) -> dict[Pipeline, Reading]:
    return {"arena": Reading(n_classes, length, "tokens"), "s4": Reading(n_classes, length, "features")}


TASKS: dict[str, ArenaTask] = {
    "listops": ArenaTask(
        "ListOps",
        tasks.ListOps,
        _same(Reading(10, 2000, "tokens")),
        {"arena": {}, "s4": {"append_end": True}},
        made=True,
        lengths_differ=True,
    ),
    "text": ArenaTask(
        "Text",
        tasks.Text,
        {"arena": Reading(2, 4000, "tokens"), "s4": Reading(2, 4096, "tokens")},
        {"arena": _text("bytes", 4000), "s4": _text("characters", 4096, {"append_end": True})},
        lengths_differ=True,
    ),
    "retrieval": ArenaTask(
        "Retrieval",
        tasks.Retrieval,
        _same(Reading(2, 4000, "tokens", pair=True)),
        {"arena": _text("bytes", 4000), "s4": _text("characters", 4000, {"append_end": True, "n_characters": 95})},
        lengths_differ=True,
    ),
    "image": ArenaTask(
        "Image",
        tasks.Image,
        _pixels(10, 1024),
        {"arena": {"pixels": "tokens", "grey": "tensorflow"}, "s4": {"pixels": "standardised", "grey": "pillow"}},
    ),
    "pathfinder": ArenaTask("Pathfinder", tasks.Pathfinder, _pixels(2, 1024), _images(32), made=True),
    "path-x": ArenaTask("Path-X", tasks.Pathfinder, _pixels(2, 128**2), _images(128), made=True),
    "packages": ArenaTask(
        "Packages",
        tasks.SourcePackages,
        _same(Reading(10, 4096, "tokens")),
        {"arena": {}, "s4": {}},
        made=True,
    ),
}
ARENA = tuple(name for name in TASKS if name != "packages")
"""The six tasks that papers report."""
NEIGHBOUR = {"path-x": "pathfinder", "packages": "text"}
"""The task whose hyperparameters are taken where a table has none for a task."""


def task_of(name: str) -> ArenaTask:
    """The task of that name; raises InputError if there is none."""
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name]


def row_for(rows: Mapping[str, T], task: str) -> tuple[T, str]:
    """The row of a table of hyperparameters, and the task that it was published for."""
    source = task if task in rows else NEIGHBOUR[task]
    return rows[source], source


def task_config(name: str, pipeline: Pipeline, loading: Config, data: Path | None) -> Config:
    """The `task` section of a configuration; raises InputError where the task reads no files."""
    task = task_of(name)
    given = {} if data is None else {"data": str(data)}
    if data is None and not task.made:
        given = {"data": "data"}
    return {
        "class_path": task.build.__name__,
        "init_args": {**given, **task.arguments[pipeline], "loading": loading},
    }
