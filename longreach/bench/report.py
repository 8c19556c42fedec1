"""What measuring found, for people (tables, log-log plots) and for programs (CSV)."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longreach.bench.mixer_costs import MixerCost
from longreach.errors import InputError

QUANTITIES = {
    "forward_seconds": ("forward, milliseconds", 1e3),
    "training_seconds": ("forward and backward, milliseconds", 1e3),
    "forward_bytes": ("forward, peak memory in MiB", 2**-20),
    "training_bytes": ("forward and backward, peak memory in MiB", 2**-20),
}
"""Field of MixerCost -> its title, and the factor to the unit in it."""
LINES = ("-", "--", ":", "-.")
COLOURS = 10


def cost_tables(costs: Sequence[MixerCost]) -> RenderableType:
    """A table for each quantity, one row a mixer and one column a length; and why cells are empty."""
    lengths = sorted({cost.length for cost in costs})
    notes = dict.fromkeys(f"{cost.mixer} from length {cost.length}: {cost.note}" for cost in _first_notes(costs))
    tables = [part for field, (title, _) in QUANTITIES.items() for part in (Text(title), _table(field, costs, lengths))]
    return Group(*tables, *(Text(note) for note in notes))


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
    """Time and memory against length, both axes logarithmic, a line a mixer, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 10), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(2, 2, sharex=True).flat
    names = list(dict.fromkeys(cost.mixer for cost in costs))
    for axes, (field, (label, factor)) in zip(all_axes, QUANTITIES.items(), strict=True):
        for i, name in enumerate(names):
            points = [(c.length, getattr(c, field)) for c in costs if c.mixer == name and getattr(c, field) is not None]
            if points:
                x, y = zip(*points, strict=True)
                style = {"color": f"C{i % COLOURS}", "linestyle": LINES[i // COLOURS % len(LINES)]}
                axes.plot(x, [factor * value for value in y], marker="o", markersize=3, label=name, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("length", fontsize=10)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file with --out") from error
