"""What measuring on a GPU found: tables for terminals and in Markdown, all numbers as JSON, a figure for a section."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from longreach.bench.crossings import REFERENCE, crossings
from longreach.bench.gpu.cells import Result
from longreach.bench.gpu.device import SECTION as DEVICE
from longreach.bench.gpu.models import TRAINING
from longreach.bench.gpu.quantities import FLASH, QUANTITIES, Quantity
from longreach.bench.grid import Grid
from longreach.bench.mixer_costs import MixerCost
from longreach.bench.report import crossing_text
from longreach.disk import replace_text
from longreach.errors import InputError

Lines = dict[str, dict[int, float]]
"""Name -> values by length."""


class View(NamedTuple):
    """One quantity of one case."""

    case: str
    lines: Lines
    whole: float | None
    """The peak that it is a share of."""


def views(results: Sequence[Result], section: str, quantity: Quantity) -> list[View]:
    """A view for each case of which anything is known."""
    found = []
    whole = _peak(results, quantity.whole)
    for case in dict.fromkeys(r.case for r in results if r.section == section):
        mine = sorted((r for r in results if (r.section, r.case) == (section, case)), key=lambda r: r.length)
        lines: Lines = {}
        for result in mine:
            value = quantity.of(result.numbers)
            if value is not None and value == value:  # not NaN
                lines.setdefault(result.side, {})[result.length] = value
        if quantity.against:
            lines = _relative(lines, quantity.against)
        if lines and quantity.published:
            lengths = {result.length for result in mine}
            lines[FLASH] = {n: value for n, value in quantity.published.items() if n in lengths}
        if lines:
            found.append(View(case, lines, whole))
    return found


def _peak(results: Sequence[Result], name: str) -> float | None:
    """In the unit in which shares of it are given: 1e12 operations or 1e9 bytes a second."""
    for quantity in QUANTITIES[DEVICE]:
        for result in results:
            if (result.section, result.side) == (DEVICE, name) and (value := quantity.of(result.numbers)):
                return value
    return None


def _relative(lines: Lines, against: Sequence[str]) -> Lines:
    """How many times as large the least of some lines is, at every length."""
    found: Lines = {}
    for name, values in lines.items():
        for length, value in values.items():
            others = [lines[other][length] for other in against if length in lines.get(other, {})]
            if others and value:
                found.setdefault(name, {})[length] = min(others) / value
    return found


def grids(results: Sequence[Result]) -> list[Grid]:
    """A table for every quantity of every section, a row for every side of every case, a column for every length."""
    found = []
    for section, quantities in QUANTITIES.items():
        for quantity in quantities:
            seen = views(results, section, quantity)
            lengths = sorted({n for view in seen for values in view.lines.values() for n in values})
            rows = [
                [f"{view.case}: {name}", *(_cell(values.get(n), view.whole) for n in lengths)]
                for view in seen
                for name, values in view.lines.items()
            ]
            if rows:
                found.append(Grid(f"{section}: {quantity.title}", ["", *(f"{n:,}" for n in lengths)], rows))
    return found + _crossing_grid(results)


def _cell(value: float | None, whole: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{text} ({value / whole:.0%})" if whole else text


def _crossing_grid(results: Sequence[Result]) -> list[Grid]:
    costs = [
        MixerCost(r.side, r.length, training_seconds=r.numbers["training_seconds"])
        for r in results
        if r.section == TRAINING and r.numbers
    ]
    rows = [[crossing.mixer, crossing_text(crossing)] for crossing in crossings(costs)]
    return (
        [Grid(f"{TRAINING}: a step takes less time than {REFERENCE} from length", ["", "length"], rows)] if rows else []
    )


def notes(results: Sequence[Result]) -> list[str]:
    """Why cells are empty, a line for all lengths at which the reason is the same."""

    def reason(result: Result) -> tuple[str, str, str, str]:
        return result.section, result.case, result.side, result.note

    empty = sorted((r for r in results if r.note), key=lambda r: (*reason(r), r.length))
    return [
        f"{section}, {case}, {side} at {', '.join(f'{r.length:,}' for r in group)}: {note}"
        for (section, case, side, note), group in groupby(empty, reason)
    ]


def tables(results: Sequence[Result]) -> RenderableType:
    """For a terminal."""
    parts = [part for grid in grids(results) for part in (Text(grid.title), grid.table())]
    return Group(*parts, *(Text(note) for note in notes(results)))


def write_results(folder: Path, results: Sequence[Result], about: dict[str, Any]) -> Path:
    """Every number as JSON, with what it was measured with."""
    path = folder / "results.json"
    replace_text(path, json.dumps({**about, "results": [r._asdict() for r in results]}, indent=1) + "\n")
    return path


def write_report(folder: Path, results: Sequence[Result], title: str) -> list[Path]:
    """The tables in Markdown, and a figure for each section of which anything is known."""
    lines = [f"# {title}", "", *(line for grid in grids(results) for line in grid.markdown())]
    table = folder / "tables.md"
    replace_text(table, "\n".join([*lines, *(f"- {note}" for note in notes(results))]) + "\n")
    figures = [_write_figure(folder, results, section, title) for section in QUANTITIES if section != DEVICE]
    return [table, *(path for path in figures if path is not None)]


def _write_figure(folder: Path, results: Sequence[Result], section: str, title: str) -> Path | None:
    """A row of panels for each quantity, a panel for each case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [q for q in QUANTITIES[section] if q.plotted]
    rows = [(quantity, seen) for quantity in shown if (seen := views(results, section, quantity))]
    if not rows:
        return None
    columns = max(len(seen) for _, seen in rows)
    figure = Figure(figsize=(3.6 * columns + 1.6, 3.0 * len(rows) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), columns, squeeze=False, sharex="col")
    colours = _colours([view for _, seen in rows for view in seen])
    for line, (quantity, seen) in zip(panels, rows, strict=True):
        for axes, view in zip(line, seen, strict=False):
            _draw(axes, view, colours, multiples=bool(quantity.against))
            axes.set_title(f"{view.case}\n{quantity.title}", fontsize=9)
        for axes in line[len(seen) :]:
            axes.set_axis_off()
    handles = {label: h for axes in panels.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"{section}: {title}", fontsize=10)
    figure.supxlabel("length", fontsize=9)
    path = folder / f"{section}.png"
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another folder with --out") from error
    return path


def _colours(seen: Sequence[View]) -> dict[str, str]:
    names = dict.fromkeys(name for view in seen for name in view.lines)
    return {name: f"C{i}" for i, name in enumerate(names)}


def _draw(axes: Any, view: View, colours: dict[str, str], *, multiples: bool) -> None:
    """Lines on logarithmic axes; multiples on a linear one, with a line where both are equal."""
    for name, values in view.lines.items():
        dashes = "--" if name == FLASH else "-"
        axes.plot(*zip(*values.items(), strict=True), dashes, marker="o", markersize=3, color=colours[name], label=name)
    if view.whole is not None:
        axes.axhline(view.whole, color="0.6", linewidth=0.8, linestyle=":", label="measured peak")
    axes.set_xscale("log", base=2)
    if multiples:
        axes.axhline(1.0, color="0.6", linewidth=0.8)
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.tick_params(labelsize=7)
    axes.tick_params(axis="x", rotation=45)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
