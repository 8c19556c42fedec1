"""The numbers of a run as it goes: metrics.jsonl, one JSON object a line, and TensorBoard files where it is installed.

Every line has `step` and `kind`: "train" (loss, what the task makes of it, lr, grad_norm, tokens, seconds,
tokens_per_second, memory in bytes) or "evaluation" (the metrics of the task).
"""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from longreach.disk import replace_text, writing

Kind = Literal["train", "evaluation"]


class MetricsLog:
    """Appends to the metrics of a run; lines after `step` belong to a future that did not happen and are removed."""

    def __init__(self, path: Path, tensorboard: Path, *, step: int) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        self._path = path
        replace_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._board = None
        with writing(path):
            self._file = path.open("a")
            if importlib.util.find_spec("tensorboard"):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def write(self, kind: Kind, step: int, values: Mapping[str, Any]) -> None:
        """Add one line."""
        with writing(self._path):
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            self._file.flush()
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Return when all lines have reached the disk, as those before a checkpoint must."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with writing(self._path):
            self._file.close()
            if self._board:
                self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines, oldest first; a last line that was cut off when the process died is left out."""
    if not path.exists():
        return []
    *complete, _ = path.read_text().split("\n")
    return [json.loads(line) for line in complete]
