"""What measuring operators found, for people (a table, log-log plots) and for programs (JSON)."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longreach.bench.operator_costs import OURS, OperatorCost, ratios
from longreach.errors import InputError

LINES = {1: "-", 2: "--"}
"""By the number of threads; more are dotted."""
WORSE = 4.0
"""An error so many times the baseline's is pointed out."""


def allocator() -> str:
    """How memory was allocated while measuring: what the environment tells glibc, which both sides then use."""
    return os.environ.get("GLIBC_TUNABLES") or "not tuned"


def operator_table(costs: Sequence[OperatorCost]) -> RenderableType:
    """A row for each measurement: nanoseconds a number, and ratios with the quartiles of the rounds."""
    table = Table(title="nanoseconds a number (microseconds a step), and how many times as long the baseline takes")
    for name in ("operator", "case", "against"):
        table.add_column(name)
    for name in ("length", "threads", "forward", "ratio", "training", "ratio", "MiB", "theirs"):
        table.add_column(name, justify="right")
    for cost in costs:
        table.add_row(
            cost.operator, cost.case, cost.baseline, f"{cost.length:,}", str(cost.threads),
            *_cells(cost, cost.forward), *_cells(cost, cost.training), *(_mebibytes(size) for size in cost.bytes),
        )  # fmt: skip
    return Group(table, *(Text(note) for note in (*_notes(costs), f"allocator: {allocator()}")))


def _unit(cost: OperatorCost) -> float:
    """What seconds are multiplied with."""
    return 1e6 if cost.operator == "step" else 1e9 / cost.numbers


def _cells(cost: OperatorCost, seconds: tuple[list[float], list[float]] | None) -> tuple[str, str]:
    if seconds is None:
        return "", ""
    low, middle, high = quantiles(ratios(seconds), n=4, method="inclusive")
    return f"{_unit(cost) * median(seconds[0]):.3g}", f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"


def _notes(costs: Sequence[OperatorCost]) -> list[str]:
    """The mean ratio of every operator on one thread, and where ours is less accurate."""
    notes = []
    for operator in dict.fromkeys(cost.operator for cost in costs):
        mine = [cost for cost in costs if cost.operator == operator and cost.threads == costs[0].threads]
        means = [
            f"{name} {math.exp(sum(math.log(median(ratios(x))) for x in found) / len(found)):.1f}"
            for name in ("forward", "training")
            if (found := [x for cost in mine if (x := getattr(cost, name)) is not None])
        ]
        notes.append(f"{operator}: geometric mean of the ratios on {costs[0].threads} thread(s): {', '.join(means)}")
    for cost in costs:
        if cost.errors is not None and cost.errors[0] > WORSE * cost.errors[1]:
            notes.append(
                f"{cost.operator} ({cost.case}) at {cost.length:,}: error {cost.errors[0]:.1e}, "
                f"{cost.baseline} {cost.errors[1]:.1e}"
            )
    return list(dict.fromkeys(notes))


def write_json(path: Path, costs: Sequence[OperatorCost], about: dict[str, Any]) -> None:
    """Everything that was measured, every round of it, with what it was measured with."""
    path.write_text(json.dumps({**about, "costs": [cost._asdict() for cost in costs]}, indent=1) + "\n")


def write_operator_plot(path: Path, costs: Sequence[OperatorCost], title: str) -> None:
    """Nanoseconds a number against length, both axes logarithmic, a panel for each case of several lengths, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys((cost.operator, cost.case) for cost in costs if cost.operator != "step"))
    columns = min(4, max(1, len(cases)))
    figure = Figure(figsize=(4.2 * columns, 3.4 * max(1, -(-len(cases) // columns))), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-max(1, len(cases)) // columns), columns, squeeze=False).flat
    for axes, case in zip(panels, cases, strict=False):
        _draw(axes, [cost for cost in costs if (cost.operator, cost.case) == case])
        axes.set_title(f"{case[0]}: {case[1]}", fontsize=9)
    for axes in list(panels)[len(cases) :]:
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("length", fontsize=10)
    figure.supylabel("nanoseconds a number, forward and backward", fontsize=10)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file with --out") from error


def _draw(axes: Any, costs: Sequence[OperatorCost]) -> None:
    """A line for ours and for each baseline, at every number of threads."""
    names = [OURS, *dict.fromkeys(cost.baseline for cost in costs)]
    for threads in sorted({cost.threads for cost in costs}):
        for i, name in enumerate(names):
            points: dict[int, float] = {}
            for cost in costs:
                if cost.threads == threads and name in (OURS, cost.baseline):
                    seconds = cost.training or cost.forward
                    points[cost.length] = _unit(cost) * median(seconds[0 if name == OURS else 1])
            label = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            style = {"color": f"C{i}", "linestyle": LINES.get(threads, ":")}
            axes.plot(points.keys(), points.values(), marker="o", markersize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
