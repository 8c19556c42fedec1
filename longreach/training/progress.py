"""What a user sees while a model trains: a live bar on a terminal, now and then a line anywhere else, on stderr."""

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 10.0
UNSHOWN = ("lr", "grad_norm", "tokens", "seconds")


class TrainingProgress:
    """Shows where a run is.  Silent in all processes but the one that leads."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f}/{task.fields[planned]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=self.console,
            expand=True,
            disable=quiet or not self.console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, planned="?")
        self._next_line = 0.0

    def show(self, step: int, steps: int | None, values: Mapping[str, float | int], seconds_left: float | None) -> None:
        """Show the latest numbers of a training step; `values` as in metrics.jsonl."""
        text = "  ".join(_words(name, value) for name, value in values.items() if name not in UNSHOWN)
        text += f"  {duration(seconds_left)} left" if seconds_left is not None else ""
        planned = f"{steps:,}" if steps else "?"
        if not self._bar.disable:
            self._bar.update(self._task, completed=step, total=steps, planned=planned, description=text)
        elif time.monotonic() >= self._next_line or step == steps:
            self.console.print(f"step {step:,}/{planned}  {text}")
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text)

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()


def _words(name: str, value: float | int) -> str:
    if name == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    if name == "memory":
        return f"{value / 2**30:.2f} GiB"
    return f"{name.replace('_', ' ')} {value:.4f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3:07, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
