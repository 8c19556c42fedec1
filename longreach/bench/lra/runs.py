"""A system on a task as a run: a folder `<task>/<system>` with its configuration, checkpoints and result.json.

The result is that of the checkpoint with the best accuracy on the validation part, on the test part, which decided on
nothing; beside it stands what naming the most frequent label would give.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from longreach.bench.cell_run import TrainedCell, read_result, train_cell, write_result
from longreach.bench.lra.systems import SYSTEMS, RunOptions, config_text
from longreach.bench.lra.tasks import TASKS
from longreach.training.run_folder import machine


class ArenaResult(NamedTuple):
    """What a run has come to, as result.json has it."""

    task: str
    system: str
    accuracy: float | None
    """On the test part; None if training diverged."""
    majority_accuracy: float | None
    validation_accuracy: float | None
    best_step: int | None
    steps: int
    seconds: float
    parameters: int
    options: dict[str, Any]
    """Of the training."""
    machine: dict[str, Any]
    note: str = ""


def run_system(task: str, system: str, options: RunOptions, out: Path) -> ArenaResult | None:
    """Train a system on a task, or go on with it, or read what it came to; None if it was stopped by a signal."""
    path = out / task / system
    if (found := read_result(path, ArenaResult)) is not None:
        return found
    trained = train_cell(path, lambda: config_text(task, system, options))
    if trained is None:
        return None
    write_result(path, _result(task, system, trained)._asdict())
    return read_result(path, ArenaResult)


def _result(task: str, system: str, trained: TrainedCell) -> ArenaResult:
    record = trained.folder.read_record()
    found = record.get("result", {})
    metrics = found.get("metrics") or {}
    return ArenaResult(
        task=task,
        system=system,
        accuracy=None if trained.note else metrics.get("test_accuracy"),
        majority_accuracy=metrics.get("test_majority_accuracy"),
        validation_accuracy=metrics.get("accuracy"),
        best_step=found.get("best_step"),
        steps=found.get("step", 0),
        seconds=round(found.get("seconds", 0.0), 1),
        parameters=record.get("model", {}).get("parameters", 0),
        options=asdict(trained.experiment.training),
        machine=machine(),
        note=trained.note,
    )


def read_results(out: Path) -> list[ArenaResult]:
    """All finished runs in a folder, in the order of TASKS and SYSTEMS."""
    found = (read_result(out / task / system, ArenaResult) for task in TASKS for system in SYSTEMS)
    return [result for result in found if result is not None]
