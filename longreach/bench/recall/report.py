"""The cells as tables for people (text, Markdown), for programs (CSV), and as a plot of score against length."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from longreach.bench.grid import Grid
from longreach.bench.recall.cells import CellResult
from longreach.bench.recall.published import PUBLISHED, PublishedScore
from longreach.bench.recall.systems import SYSTEMS
from longreach.bench.recall.tasks import kind_of
from longreach.disk import replace_text, writing
from longreach.training.plots import plot_axes

CSV_FIELDS = (
    "task", "system", "length", "size", "score", "chance", "majority", "best_step", "steps", "seconds", "parameters",
)  # fmt: skip
Place = tuple[int, int | None]
"""A column: a length and a size."""


def _grids(task: str, results: Sequence[CellResult]) -> list[Grid]:
    """Ours, with the rates of those who know nothing below, and the published ones; what was not run is empty."""
    ours = [result for result in results if result.task == task]
    published = [score for score in PUBLISHED if score.task == task]
    grids = []
    if ours:
        title = f"{task}: {kind_of(task).score}, best held-out evaluation{_axes(task)}"
        rates = {_place(result): result for result in ours}
        scores = {(result.system, _place(result)): result.score for result in ours}
        grid = _grid(title, scores)
        grid.rows.append(["chance", *(_percent(rates[place].chance) for place in sorted(rates, key=_order))])
        if any(result.majority is not None for result in ours):
            grid.rows.append(
                ["most frequent answer", *(_percent(rates[place].majority) for place in sorted(rates, key=_order))]
            )
        grids.append(grid)
    for source in dict.fromkeys(score.source for score in published):
        scores = {(each.system, _place(each)): each.score for each in published if each.source == source}
        grids.append(_grid(f"{task}: published in {source}{_axes(task)}", scores))
    return grids


def _place(cell: CellResult | PublishedScore) -> Place:
    return cell.length, cell.size


def _order(place: Place) -> tuple[int, int]:
    length, size = place
    return length, size or 0


def _grid(title: str, scores: Mapping[tuple[str, Place], float | None]) -> Grid:
    """A row for each system, in the order of SYSTEMS and then as they come; a column for each length and size."""
    named = dict.fromkeys(system for system, _ in scores)
    systems = [name for name in SYSTEMS if name in named] + [name for name in named if name not in SYSTEMS]
    places = sorted({place for _, place in scores}, key=_order)
    rows = [[system, *(_percent(scores.get((system, place))) for place in places)] for system in systems]
    return Grid(title, ["", *map(_heading, places)], rows)


def _axes(task: str) -> str:
    """What the headings of the columns mean."""
    size = kind_of(task).size
    return " (length)" if size is None else f" (length / {size})"


def _heading(place: Place) -> str:
    length, size = place
    return f"{length:,}" if size is None else f"{length:,} / {size}"


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _tasks(results: Iterable[CellResult]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))


def _notes(results: Iterable[CellResult]) -> list[str]:
    return [f"{result.cell.name}: {result.note}" for result in results if result.note]


def tables(results: Sequence[CellResult]) -> RenderableType:
    """What was found, task by task, the published numbers below ours; and why cells are empty that were run."""
    drawn: list[RenderableType] = []
    for grid in (grid for task in _tasks(results) for grid in _grids(task, results)):
        drawn += [Text(grid.title), grid.table()]
    return Group(*drawn, *map(Text, _notes(results)))


def markdown(results: Sequence[CellResult]) -> str:
    """The same as Markdown."""
    lines = [line for task in _tasks(results) for grid in _grids(task, results) for line in grid.markdown()]
    return "\n".join(lines + _notes(results)).rstrip() + "\n"


def write_files(results: Sequence[CellResult], out: Path) -> list[Path]:
    """Write table.md, table.csv and a plot for each task into the folder; what was written."""
    text, table = out / "table.md", out / "table.csv"
    replace_text(text, markdown(results))
    with writing(table), table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_FIELDS)
        writer.writerows([getattr(result, field) for field in CSV_FIELDS] for result in results)
    plots = [out / f"{task}.png" for task in _tasks(results)]
    for plot, task in zip(plots, _tasks(results), strict=True):
        _plot(plot, [result for result in results if result.task == task])
    return [text, table, *plots]


def _plot(path: Path, results: Sequence[CellResult]) -> None:
    """A line for each system and size: solid, dashed, ... by size."""
    kind = kind_of(results[0].task)
    sizes = sorted({result.size or 0 for result in results})
    systems = [name for name in SYSTEMS if any(result.system == name for result in results)]
    with plot_axes(path, x_label=f"length ({kind.unit})", y_label=kind.score) as axes:
        for system, size in ((system, size) for system in systems for size in sizes):
            found = sorted((r.length, 100 * r.score) for r in _of(results, system, size) if r.score is not None)
            if found:
                label = system if len(sizes) == 1 else f"{system}, {kind.size} {size}"
                style = LINES[sizes.index(size) % len(LINES)]
                axes.plot(*zip(*found, strict=True), style, color=f"C{systems.index(system)}", label=label, marker="o")
        for number, chance in enumerate(sorted({100 * result.chance for result in results})):
            label = None if number else "chance"
            axes.axhline(chance, color="grey", linewidth=0.8, linestyle=":", label=label)
        lengths = sorted({result.length for result in results})
        if len(lengths) > 1:
            axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.set_ylim(0, 102)
        axes.legend(frameon=False, fontsize="x-small", ncols=math.ceil(len(systems) * len(sizes) / 12))


LINES = ("-", "--", "-.", ":")


def _of(results: Sequence[CellResult], system: str, size: int) -> list[CellResult]:
    return [result for result in results if result.system == system and (result.size or 0) == size]
