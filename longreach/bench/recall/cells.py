"""A cell of a table: one system trained on one task at one length and vocabulary.

Each cell is a run in a folder of its own, with a configuration that repeats it (`longreach train --config ...`), and
`result.json` when it is finished.  A finished cell is not trained again, one that was stopped is continued.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from longreach.bench.cell_run import TrainedCell, read_result, train_cell, write_result
from longreach.bench.recall.systems import Size, model_config, system_of
from longreach.bench.recall.tasks import kind_of, task_arguments
from longreach.errors import InputError
from longreach.tasks.recall import SyntheticTask
from longreach.training import TrainingOptions
from longreach.training.run_folder import machine

GOAL = 1.0
"""A cell in which every held-out answer is right is finished."""
TOKENS = 4096
"""Of a step, about, where the options do not say how many examples it has."""
STEPS, WARMUP_STEPS, EVALUATIONS = 3000, 100, 30


@dataclass(frozen=True, kw_only=True)
class RecallOptions:
    """How the cells are trained.

    Attributes:
        steps: Optimiser steps of a cell, 3,000 unless `minutes` are given.
        minutes: Wall-clock budget of a cell instead.
        width: Channels of the models.
        layers: Layers of the models.
        batch_size: Examples per step; by default as many as have 4,096 positions, but from 4 to 32.
        held_out: Held-out examples; the best of thirty evaluations on them is reported.
        lr: Peak learning rate instead of the system's own.
        precision: `float32` or `bfloat16`, of the matrix products and of attention.
        seed: Of weights and examples.
        threads: Threads on the CPU; by default what torch chooses.
        device: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """

    steps: int | None = None
    minutes: float | None = None
    width: int = 64
    layers: int = 2
    batch_size: int | None = None
    held_out: int = 500
    lr: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} must be at least 1")


class Cell(NamedTuple):
    """Where a number stands."""

    task: str
    system: str
    length: int
    size: int | None
    """Of the vocabulary (of the points, for functions); None where the task has but one."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        size = "" if self.size is None else f"-{kind_of(self.task).size}-{self.size}"
        return f"{self.task}-{self.system}-length-{self.length}{size}"


class CellResult(NamedTuple):
    """What a cell has come to, as result.json has it."""

    task: str
    system: str
    length: int
    size: int | None
    score: float | None
    """Accuracy on the questions, or the explained share of the variance; None if training diverged."""
    chance: float
    majority: float | None
    """The rate of the most frequent answer, where answers are tokens."""
    best_step: int | None
    steps: int
    seconds: float
    parameters: int
    options: dict[str, Any]
    machine: dict[str, Any]
    note: str = ""

    @property
    def cell(self) -> Cell:
        """Where it stands."""
        return Cell(self.task, self.system, self.length, self.size)


def configure(cell: Cell, options: RecallOptions) -> dict[str, Any]:
    """The configuration of a cell's run."""
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = max(4, min(32, TOKENS // max(1, cell.length)))
    arguments = {
        **task_arguments(cell.task, cell.length, cell.size),
        "batch_size": batch_size,
        "seed": options.seed,
        "n_held_out": options.held_out,
    }
    task: SyntheticTask = kind_of(cell.task).build(**arguments)
    return {
        "task": {"class_path": kind_of(cell.task).class_name, "init_args": arguments},
        "model": model_config(cell.system, Size(options.width, options.layers, task.n_positions)),
        "training": _training(cell, options),
    }


def _training(cell: Cell, options: RecallOptions) -> dict[str, Any]:
    """The `training` section; raises InputError if it makes no sense."""
    steps = STEPS if options.steps is None and options.minutes is None else options.steps
    training = {
        "steps": steps,
        "minutes": options.minutes,
        "lr": system_of(cell.system).lr if options.lr is None else options.lr,
        "warmup_steps": WARMUP_STEPS if steps is None else min(WARMUP_STEPS, steps),
        "evaluate_every": None if steps is None else math.ceil(steps / EVALUATIONS),
        "stop_at": GOAL,
        "precision": options.precision,
        "seed": options.seed,
        "threads": options.threads,
        "device": options.device,
    }
    TrainingOptions(**training)
    return training


def run_cell(cell: Cell, options: RecallOptions, out: Path) -> CellResult | None:
    """Train one cell, or go on with it, or read what it came to; None if it was stopped by a signal."""
    path = out / cell.name
    if (found := read_result(path, CellResult)) is not None:
        return found
    trained = train_cell(path, lambda: json.dumps(configure(cell, options), indent=1))
    if trained is None:
        return None
    write_result(path, _result(cell, trained)._asdict())
    return read_result(path, CellResult)


def _result(cell: Cell, trained: TrainedCell) -> CellResult:
    record, task = trained.folder.read_record(), cast(SyntheticTask, trained.experiment.task)
    found = record.get("result", {})
    metrics = found.get("metrics") or {}
    return CellResult(
        *cell,
        score=metrics.get(task.objective),
        chance=metrics.get("chance", 0.0),
        majority=metrics.get("majority"),
        best_step=found.get("best_step"),
        steps=found.get("step", 0),
        seconds=round(found.get("seconds", 0.0), 1),
        parameters=record["model"]["parameters"],
        options={"batch_size": task.batch_size, "held_out": task.n_held_out, **asdict(trained.experiment.training)},
        machine=machine(),
        note=trained.note,
    )


def read_results(out: Path) -> list[CellResult]:
    """All finished cells in a folder, in the order of the names of their folders."""
    found = (read_result(path, CellResult) for path in sorted(out.glob("*")))
    return [result for result in found if result is not None]
