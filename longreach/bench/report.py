"""What measuring found, for people (tables, log-log plots) and for programs (CSV)."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longreach.bench.crossings import REFERENCE, Crossing, crossings
from longreach.bench.mixer_costs import MixerCost
from longreach.errors import InputError

QUANTITIES = {
    "forward_seconds": ("forward, milliseconds", 1e3),
    "training_seconds": ("forward and backward, milliseconds", 1e3),
    "forward_bytes": ("forward, peak memory in MiB", 2**-20),
    "training_bytes": ("forward and backward, peak memory in MiB", 2**-20),
}
"""Field of MixerCost -> its title, and the factor to the unit in it."""
COLOURS = 10
"""More mixers than that get a panel each."""
PANEL_COLUMNS = 6


def cost_tables(costs: Sequence[MixerCost]) -> RenderableType:
    """A table for each quantity, one row a mixer and one column a length; and why cells are empty."""
    lengths = sorted({cost.length for cost in costs})
    notes = dict.fromkeys(f"{cost.mixer} from length {cost.length}: {cost.note}" for cost in _first_notes(costs))
    tables = [part for field, (title, _) in QUANTITIES.items() for part in (Text(title), _table(field, costs, lengths))]
    return Group(*tables, *_crossing_table(crossings(costs)), *(Text(note) for note in notes))


def _crossing_table(found: Sequence[Crossing]) -> list[RenderableType]:
    """Nothing where attention was not measured."""
    if not found:
        return []
    table = Table("")
    table.add_column("length", justify="right")
    for crossing in sorted(found, key=lambda crossing: crossing.length or math.inf):
        table.add_row(crossing.mixer, crossing_text(crossing))
    return [Text(f"forward and backward take less time than {REFERENCE} from"), table]


def crossing_text(crossing: Crossing) -> str:
    """Two digits: lengths between those that were measured are estimates."""
    if crossing.length is None:
        return "not reached"
    if crossing.everywhere:
        return f"≤ {crossing.length:,.0f}"
    unit = 10 ** (math.floor(math.log10(crossing.length)) - 1)
    return f"{round(crossing.length / unit) * unit:,.0f}"


def _first_notes(costs: Sequence[MixerCost]) -> list[MixerCost]:
    """The shortest length of each mixer at which there was something to say."""
    first: dict[str, MixerCost] = {}
    for cost in costs:
        if cost.note:
            first.setdefault(cost.mixer, cost)
    return list(first.values())


def _table(field: str, costs: Sequence[MixerCost], lengths: list[int]) -> Table:
    _, factor = QUANTITIES[field]
    table = Table("")
    for length in lengths:
        table.add_column(f"{length:,}", justify="right")
    values = {(cost.mixer, cost.length): getattr(cost, field) for cost in costs}
    for mixer in dict.fromkeys(cost.mixer for cost in costs):
        row = [values.get((mixer, length)) for length in lengths]
        table.add_row(mixer, *("" if value is None else _number(factor * value) for value in row))
    return table


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_csv(path: Path, costs: Sequence[MixerCost]) -> None:
    """One line a mixer and length, in seconds and bytes."""
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(MixerCost._fields)
            writer.writerows(costs)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file with --out") from error


def write_plot(path: Path, costs: Sequence[MixerCost], title: str) -> None:
    """Time and memory against length, both axes logarithmic, as PNG.

    Few mixers share a panel for each quantity.  Many get a panel each, with their time of training beside attention's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(cost.mixer for cost in costs))
    if len(names) <= COLOURS:
        _draw_quantities(figure, costs, names)
    else:
        _draw_panels(figure, costs, names)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("length", fontsize=10)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file with --out") from error


def _draw_quantities(figure: Any, costs: Sequence[MixerCost], names: list[str]) -> None:
    figure.set_size_inches(14, 10)
    for axes, (field, (label, _)) in zip(figure.subplots(2, 2, sharex=True).flat, QUANTITIES.items(), strict=True):
        for name in names:
            axes.plot(*_line(costs, name, field), marker="o", markersize=3, label=name)
        axes.set_title(label, fontsize=10)
        _logarithmic(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)


def _draw_panels(figure: Any, costs: Sequence[MixerCost], names: list[str]) -> None:
    """One panel a mixer, the mixers that cross attention first in front."""
    where = {crossing.mixer: crossing for crossing in crossings(costs)}
    order = sorted(names, key=lambda name: (where[name].length or math.inf) if name in where else math.inf)
    order = [name for name in order if name != REFERENCE]
    rows = -(-len(order) // PANEL_COLUMNS)
    figure.set_size_inches(2.7 * PANEL_COLUMNS, 2.1 * rows)
    panels = list(figure.subplots(rows, PANEL_COLUMNS, sharex=True, sharey=True, squeeze=False).flat)
    for axes, name in zip(panels, order, strict=False):
        axes.plot(*_line(costs, REFERENCE, "training_seconds"), marker="o", markersize=3, color="0.65")
        axes.plot(*_line(costs, name, "training_seconds"), marker="o", markersize=3, color="C0")
        told = f", from {crossing_text(where[name])}" if name in where and where[name].length else ""
        axes.set_title(f"{name}{told}", fontsize=9)
        _logarithmic(axes)
        axes.tick_params(axis="x", labelsize=7, rotation=45)
    for axes in panels[len(order) :]:
        axes.set_axis_off()
    figure.supylabel(f"forward and backward, milliseconds; in grey {REFERENCE}", fontsize=10)


def _line(costs: Sequence[MixerCost], name: str, field: str) -> tuple[list[int], list[float]]:
    """Lengths and values of a mixer, where there are any."""
    points = [(c.length, getattr(c, field)) for c in costs if c.mixer == name and getattr(c, field) is not None]
    return [length for length, _ in points], [QUANTITIES[field][1] * value for _, value in points]


def _logarithmic(axes: Any) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
