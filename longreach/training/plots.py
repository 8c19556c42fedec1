"""Plots of a run as PNG files: how the loss fell, and the curves of the task's evaluation.  matplotlib loads on use."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longreach.disk import writing
from longreach.tasks.base import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREY = "#2a6f97", "#d1495b", "#6b7780"
SMOOTHED_FRACTION = 1 / 40
"""Every point of the smoothed loss is the mean over this fraction of the run around it."""
HIDDEN_FRACTION = 1 / 50
"""Neither this fraction of the run at its beginning nor as many of the extreme values decide the scale."""
LOG_SPAN = 30
"""A curve whose x values span more than this factor gets a logarithmic axis."""


def plot_loss(path: Path, lines: Sequence[Mapping[str, Any]], figure: str) -> None:
    """The training loss, raw and smoothed, with the evaluations.

    Args:
        path: the PNG file.
        lines: the lines of metrics.jsonl.
        figure: which number of the lines to plot; `loss` where training lines do not have it.
    """
    train = [line for line in lines if line["kind"] == "train"]
    shown = figure if any(figure in line for line in train) else "loss"
    steps, values = [line["step"] for line in train], [line[shown] for line in train]
    judged = [line for line in lines if line["kind"] == "evaluation" and shown in line]
    with plot_axes(path, x_label="step", y_label=shown.replace("_", " ")) as axes:
        axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.8, label="training")
        if judged:
            xs, ys = [line["step"] for line in judged], [line[shown] for line in judged]
            axes.plot(xs, ys, "o-", color=RED, markersize=4, linewidth=1.2, label="held out")
        settled = sorted(values[int(len(values) * HIDDEN_FRACTION) :])
        usual = settled[int(len(settled) * HIDDEN_FRACTION) : math.ceil(len(settled) * (1 - HIDDEN_FRACTION))]
        _scale(axes, usual + [line[shown] for line in judged])
        axes.legend(frameon=False)


def plot_curve(path: Path, curve: Curve) -> None:
    """One curve of an evaluation."""
    with plot_axes(path, x_label=curve.x_label, y_label=curve.y_label) as axes:
        axes.plot(curve.x, curve.y, "o-", color=BLUE, markersize=4, linewidth=1.8)
        if min(curve.x, default=0) > 0 and max(curve.x) > LOG_SPAN * min(curve.x):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    """Let the y axis span the values and a little more."""
    if values:
        margin = 0.05 * (max(values) - min(values)) or 0.1
        axes.set_ylim(min(values) - margin, max(values) + margin)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of the neighbourhood of every value, narrower at the two ends."""
    reach = int(len(values) * SMOOTHED_FRACTION / 2)
    return [sum(part) / len(part) for i in range(len(values)) for part in [values[max(0, i - reach) : i + reach + 1]]]


@contextmanager
def plot_axes(path: Path, *, x_label: str, y_label: str, height: float = 4.2) -> Iterator["Axes"]:
    """Empty axes to draw on, saved at the end; no global state of matplotlib is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.margins(x=0.02)
    yield axes
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
