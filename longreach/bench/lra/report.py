"""Our runs beside what papers report: text, Markdown, CSV and figures.  A cell that was not run stays empty."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from longreach.bench.grid import Grid
from longreach.bench.lra.published import PUBLISHED, PublishedRow
from longreach.bench.lra.runs import ArenaResult
from longreach.bench.lra.systems import SYSTEMS
from longreach.bench.lra.tasks import ARENA, TASKS
from longreach.disk import replace_text, writing
from longreach.training.plots import BLUE, GREY, RED, plot_axes

CSV_FIELDS = (
    "task", "system", "accuracy", "majority_accuracy", "validation_accuracy", "best_step", "steps", "seconds",
    "parameters", "note",
)  # fmt: skip
CHANCE_AVERAGED = 50.0
"""What papers count for a task on which a system stays at chance."""


def grids(results: Sequence[ArenaResult]) -> list[Grid]:
    """All runs, and the table of the arena with the published rows."""
    return [*([_runs(results)] if results else []), _arena(results)]


def _runs(results: Sequence[ArenaResult]) -> Grid:
    """What was trained here, best first within a task."""
    columns = ["", "test", "most frequent label", "validation", "best step", "steps", "minutes", "parameters"]
    rows = []
    for task in TASKS:
        found = [result for result in results if result.task == task]
        for result in sorted(found, key=lambda result: -(result.accuracy or 0.0)):
            accuracies = (result.accuracy, result.majority_accuracy, result.validation_accuracy)
            numbers = (result.best_step or "", result.steps, f"{result.seconds / 60:.1f}", f"{result.parameters:,}")
            rows.append([f"{task}, {result.system}", *map(_percent, accuracies), *map(str, numbers)])
    return Grid("Runs on this machine: accuracy in percent of the best checkpoint", columns, rows)


def _arena(results: Sequence[ArenaResult]) -> Grid:
    """System after system: ours, then what papers have."""
    rows = []
    for system in SYSTEMS:
        ours = {result.task: result for result in results if result.system == system and result.task in ARENA}
        if ours:
            scores = [ours[task].accuracy if task in ours else None for task in ARENA]
            rows.append([f"{system}, here", *map(_percent, scores), _percent(_mean(scores)), ""])
        rows += [_published(row) for row in PUBLISHED if row.system == system]
    majority = {result.task: result.majority_accuracy for result in results}
    if any(task in majority for task in ARENA):
        rows.append(["most frequent label, here", *(_percent(majority.get(task)) for task in ARENA), "", ""])
    columns = ["", *(TASKS[task].title for task in ARENA), "average", "source"]
    return Grid("Long Range Arena: accuracy in percent, here and as published", columns, rows)


def _published(row: PublishedRow) -> list[str]:
    scores = ["chance" if score is None else f"{score:g}" for score in row.scores]
    return [row.label, *scores, "" if row.average is None else f"{row.average:g}", row.source]


def _mean(scores: Sequence[float | None]) -> float | None:
    """The average of all tasks; None unless all were run."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(ARENA) else None


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _notes(results: Sequence[ArenaResult]) -> list[str]:
    return [f"{result.task}, {result.system}: {result.note}" for result in results if result.note]


def tables(results: Sequence[ArenaResult]) -> RenderableType:
    """For a terminal, which has no room for sources."""
    *others, arena = grids(results)
    short = Grid(arena.title, arena.columns[:-1], [row[:-1] for row in arena.rows])
    drawn = [part for grid in (*others, short) for part in (Text(grid.title), grid.table())]
    return Group(*drawn, *map(Text, _notes(results)))


def markdown(results: Sequence[ArenaResult]) -> str:
    """The same as Markdown."""
    lines = [line for grid in grids(results) for line in grid.markdown()]
    return "\n".join(lines + _notes(results)).rstrip() + "\n"


def write_files(results: Sequence[ArenaResult], out: Path) -> list[Path]:
    """Write table.md, table.csv, arena.png, and a figure for each task that was run; what was written."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    text, table, figure = out / "table.md", out / "table.csv", out / "arena.png"
    replace_text(text, markdown(results))
    with writing(table), table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_FIELDS)
        writer.writerows([getattr(result, field) for field in CSV_FIELDS] for result in results)
    plot_arena(figure, results)
    plots = []
    for task in TASKS:
        found = [result for result in results if result.task == task and result.accuracy is not None]
        if found:
            plots.append(out / f"{task}.png")
            plot_task(plots[-1], task, found)
    return [text, table, figure, *plots]


def plot_task(path: Path, task: str, results: Sequence[ArenaResult]) -> None:
    """A bar for each system that was run, the best on top, and the published accuracies as dots."""
    ordered = sorted(results, key=lambda result: result.accuracy or 0.0)
    height, x_label = max(3.0, 1.2 + 0.24 * len(ordered)), f"accuracy on {TASKS[task].title}, percent"
    with plot_axes(path, x_label=x_label, y_label="", height=height) as axes:
        axes.barh([result.system for result in ordered], [100 * (r.accuracy or 0.0) for r in ordered], color=BLUE)
        axes.axvline(100 * (ordered[0].majority_accuracy or 0.0), color=RED, linestyle=":", label="most frequent label")
        dots = [(row.score(task), row.system) for row in PUBLISHED if row.score(task) is not None]
        dots = [dot for dot in dots if dot[1] in {result.system for result in ordered}]
        if dots:
            axes.plot(*zip(*dots, strict=True), "o", color=GREY, markersize=4, label="published")
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlim(0, 100)
        axes.legend(frameon=False, fontsize="small", loc="lower right")


def plot_arena(path: Path, results: Sequence[ArenaResult]) -> None:
    """A panel for each task and one for the average, systems from top to bottom: published and, where run, ours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    systems = [name for name in SYSTEMS if any(each.system == name for each in (*PUBLISHED, *results))]
    figure = Figure(figsize=(16, 0.27 * len(systems) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(ARENA) + 1, sharey=True)
    for axes, task in zip(panels, [*ARENA, None], strict=True):
        _draw_panel(axes, task, systems, results)
    panels[0].set_yticks(range(len(systems)), systems, fontsize=8)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    with writing(path):
        figure.savefig(path, dpi=110)


def _draw_panel(axes: Any, task: str | None, systems: list[str], results: Sequence[ArenaResult]) -> None:
    """A task, or the average where there is none."""
    theirs = [(_shown(row, task), systems.index(row.system)) for row in PUBLISHED]
    axes.plot(*zip(*[dot for dot in theirs if dot[0] is not None], strict=True), "o", color=GREY, label="published")
    ours = [(_ours(system, task, results), place) for place, system in enumerate(systems)]
    known = [dot for dot in ours if dot[0] is not None]
    axes.plot([x for x, _ in known], [y for _, y in known], "D", color=RED, label="here")
    axes.set_title("average of six" if task is None else TASKS[task].title, fontsize=10)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent", fontsize=8)


def _shown(row: PublishedRow, task: str | None) -> float | None:
    """A published accuracy; averages are ours, over six tasks, so that all systems are counted alike."""
    if task is not None:
        return row.score(task)
    return sum(CHANCE_AVERAGED if score is None else score for score in row.scores) / len(ARENA)


def _ours(system: str, task: str | None, results: Sequence[ArenaResult]) -> float | None:
    found = {result.task: result.accuracy for result in results if result.system == system}
    score = _mean([found.get(name) for name in ARENA]) if task is None else found.get(task)
    return None if score is None else 100 * score
