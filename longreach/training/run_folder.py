"""The folder of a run: what is in it, and the record of how it came about.

    config.yaml      the resolved configuration: `longreach train --config RUN/config.yaml` repeats the run
    record.json      versions, machine, data, size of the model, results
    metrics.jsonl    the course of training, a JSON object a line
    checkpoints/     last/ (to resume) and best/ (by the task's objective)
    plots/           loss and the task's curves
    evaluation/      what `longreach evaluate` found
    tensorboard/     the metrics again, where TensorBoard is installed

and what the task adds, such as tokenizer.json.
"""

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch

import longreach
from longreach.disk import replace_text
from longreach.errors import InputError
from longreach.training.checkpoint import find

CheckpointName = Literal["last", "best"]


class RunFolder:
    """Where everything of one run is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.record = path / "record.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"
        self.evaluation = path / "evaluation"
        self.tensorboard = path / "tensorboard"

    def require_new(self) -> None:
        """Raise InputError if there is something in the folder already."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                f"{self.path} exists already; continue that run with `longreach train --resume {self.path}`, "
                "or name another folder with --run"
            )

    def require_run(self) -> None:
        """Raise InputError if this is not the folder of a run."""
        if not self.config.is_file():
            raise InputError(
                f"{self.path} is not the folder of a run: it has no config.yaml; name one as made by `train`"
            )

    def create(self) -> None:
        """Make the folder; it may exist."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path}: {error}; name another folder with --run") from error

    def checkpoint(self, name: CheckpointName) -> Path:
        """The checkpoint of that name; raises InputError if there is none."""
        found = find(self.checkpoints / name)
        if found is None:
            raise InputError(f"{self.path} has no checkpoint {name!r}: training stopped before the first was saved")
        return found

    def read_record(self) -> dict[str, Any]:
        """The record so far; empty before the first is written."""
        if not self.record.exists():
            return {}
        try:
            return json.loads(self.record.read_text())
        except ValueError as error:
            raise InputError(f"{self.record} is damaged: {error}; restore it or train again") from error

    def add_to_record(self, entries: Mapping[str, Any]) -> None:
        """Add or replace entries of the record."""
        replace_text(self.record, json.dumps({**self.read_record(), **entries}, indent=1) + "\n")


def default_folder(name: str) -> Path:
    """runs/<name>-<date>-<time>."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def machine() -> dict[str, Any]:
    """What this computer is and which versions run on it."""
    return {
        "longreach": longreach.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    """The name of the processor, which Linux tells only in a file."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
