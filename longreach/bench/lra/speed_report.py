"""What training steps cost, relative to the Transformer as in the paper: text, Markdown, CSV and a figure."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from longreach.bench.grid import Grid
from longreach.bench.lra.published import PUBLISHED_SPEED, PUBLISHED_SPEED_LENGTHS, PublishedSpeed
from longreach.bench.lra.speed import SpeedCell
from longreach.bench.lra.systems import SYSTEMS
from longreach.disk import replace_text, writing
from longreach.training.plots import BLUE, RED

REFERENCE = "transformer"
SHOWN = 2
"""Lengths in the figure: the longest."""
Quantity = Callable[[SpeedCell], float | None]


def _steps_per_second(cell: SpeedCell) -> float | None:
    return None if cell.seconds is None else 1 / cell.seconds


def _mebibytes(cell: SpeedCell) -> float | None:
    return None if cell.bytes is None else cell.bytes / 2**20


QUANTITIES: dict[str, Quantity] = {"training steps a second": _steps_per_second, "peak memory, MiB": _mebibytes}


def _values(cells: Sequence[SpeedCell], quantity: Quantity) -> dict[tuple[str, int], float | None]:
    return {(cell.system, cell.length): quantity(cell) for cell in cells}


def relative(values: Mapping[tuple[str, int], float | None]) -> dict[tuple[str, int], float | None]:
    """In multiples of the Transformer's at the same length, where both are known."""
    found: dict[tuple[str, int], float | None] = {}
    for (system, length), value in values.items():
        reference = values.get((REFERENCE, length))
        found[system, length] = value / reference if value is not None and reference else None
    return found


def grids(cells: Sequence[SpeedCell]) -> list[Grid]:
    """Both quantities, absolute and relative, and the paper's relative ones."""
    drawn = []
    for title, quantity in QUANTITIES.items():
        values = _values(cells, quantity)
        drawn.append(_grid(title, values))
        drawn.append(_grid(f"{title}, relative to the Transformer", relative(values)))
    for title, column in zip(QUANTITIES, (_published_steps, _published_memory), strict=True):
        found = {
            (row.system, length): value
            for row in PUBLISHED_SPEED
            for length, value in zip(PUBLISHED_SPEED_LENGTHS, column(row), strict=True)
        }
        drawn.append(_grid(f"{title}, relative to the Transformer, as published (16 TPU v3)", relative(found)))
    return drawn


def _published_steps(row: PublishedSpeed) -> tuple[float, ...]:
    return row.steps_per_second


def _published_memory(row: PublishedSpeed) -> tuple[float, ...]:
    return row.gigabytes


def _grid(title: str, values: dict[tuple[str, int], float | None]) -> Grid:
    lengths = sorted({length for _, length in values})
    systems = [system for system in SYSTEMS if any(system == name for name, _ in values)]
    rows = [[system, *(_number(values.get((system, length))) for length in lengths)] for system in systems]
    return Grid(title, ["", *(f"{length:,}" for length in lengths)], rows)


def _number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(cells: Sequence[SpeedCell]) -> list[str]:
    """The first of each system."""
    first: dict[str, str] = {}
    for cell in sorted(cells, key=lambda cell: cell.length):
        if cell.note:
            first.setdefault(cell.system, f"{cell.system} from length {cell.length:,}: {cell.note}")
    return list(first.values())


def speed_tables(cells: Sequence[SpeedCell]) -> RenderableType:
    """For a terminal."""
    drawn = [part for grid in grids(cells) for part in (Text(grid.title), grid.table())]
    return Group(*drawn, *map(Text, _notes(cells)))


def speed_markdown(cells: Sequence[SpeedCell]) -> str:
    """The same as Markdown."""
    lines = [line for grid in grids(cells) for line in grid.markdown()]
    return "\n".join(lines + _notes(cells)).rstrip() + "\n"


def write_speed(cells: Sequence[SpeedCell], out: Path, title: str) -> list[Path]:
    """Write speed.md, speed.csv and speed.png into the folder; what was written."""
    text, table, figure = out / "speed.md", out / "speed.csv", out / "speed.png"
    replace_text(text, speed_markdown(cells))
    with writing(table), table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SpeedCell._fields)
        writer.writerows(cells)
    plot_speed(figure, cells, title)
    return [text, table, figure]


def plot_speed(path: Path, cells: Sequence[SpeedCell], title: str) -> None:
    """Bars relative to the Transformer, at the longest lengths at which that was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    speed = relative(_values(cells, _steps_per_second))
    lengths = sorted({length for (_, length), value in speed.items() if value is not None})[-SHOWN:]
    systems = [name for name in SYSTEMS if any(cell.system == name for cell in cells)]
    figure = Figure(figsize=(14, 0.26 * len(systems) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    panels = list(figure.subplots(1, 2 * max(1, len(lengths)), sharey=True))
    chosen = [(length, name) for length in lengths for name in QUANTITIES]
    for axes, (length, name) in zip(panels, chosen, strict=False):
        values = relative(_values(cells, QUANTITIES[name]))
        bars = [(system, values.get((system, length))) for system in systems]
        widths = [value or 0.0 for _, value in bars]
        axes.barh(range(len(systems)), widths, color=BLUE)
        axes.axvline(1.0, color=RED, linewidth=0.8)
        axes.set_title(f"{name.split(',')[0]} at {length:,}", fontsize=9)
        axes.set_xlabel("relative to the Transformer", fontsize=8)
    panels[0].set_yticks(range(len(systems)), systems, fontsize=8)
    panels[0].invert_yaxis()
    with writing(path):
        figure.savefig(path, dpi=110)
