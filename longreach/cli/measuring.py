"""Telling how far a measurement is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def measuring(total: int) -> Iterator[Callable[[int, str], None]]:
    """What tells how many of `total` measurements are done, on stderr: a bar in a terminal, else a line for each."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda done, what: console.print(f"{done}/{total} {what}", soft_wrap=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("measuring", total=total)
        yield lambda done, what: progress.update(task, completed=done, description=what)
