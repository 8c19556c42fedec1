"""What an evaluation looks like: tables for people, JSON for programs, a plot of the curve against context."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from longreach.inference.evaluation import ContextScore, DocumentScore, Report
from longreach.training.plots import BLUE, GREY, RED, plot_axes

BITS = 8


def report_json(report: Report, about: dict[str, object]) -> dict[str, object]:
    """All numbers as plain JSON values, after what `about` says of the model and the data."""
    return {
        **about,
        "left_out_by_limits": report.left_out,
        "total": {"documents": len(report.documents), **_document_json(report.total)},
        "contexts": [{**asdict(score), **_rates(score)} for score in report.contexts],
        "documents": [_document_json(score) for score in report.documents],
    }


def report_tables(report: Report) -> RenderableType:
    """The total next to the compressors, and the curve against context."""
    total = report.total
    limits = " (as far as the limits allow)" if report.left_out else ""
    sizes = f"{total.bytes:,} bytes, {total.tokens:,} tokens"
    title = f"Whole documents{limits}: {len(report.documents):,}, {sizes}"
    against = Table(title=title, title_justify="left")
    against.add_column("")
    against.add_column("bits per byte", justify="right")
    against.add_column("bits per token", justify="right")
    rates = _rates(total)
    against.add_row("this model", f"{rates['bits_per_byte']:.3f}", f"{rates['bits_per_token']:.3f}", style="bold")
    against.add_row("gzip -9, file by file", f"{BITS * total.gzip_bytes / total.bytes:.3f}", "")
    against.add_row("xz -9e, file by file", f"{BITS * total.xz_bytes / total.bytes:.3f}", "")
    if not report.contexts:
        return Group(against, "No curve against context: the documents are too short for one.")
    tokens = report.contexts[0].tokens
    curve = Table(title=f"Against context: the same {tokens:,} tokens under each", title_justify="left")
    for column in ("tokens of context", "bits per byte", "bits per token"):
        curve.add_column(column, justify="right")
    for score in report.contexts:
        rates = _rates(score)
        name = "whole document" if score.context is None else f"{score.context:,}"
        curve.add_row(name, f"{rates['bits_per_byte']:.3f}", f"{rates['bits_per_token']:.3f}")
    return Group(against, "", curve)


def write_report(report: Report, about: dict[str, object], folder: Path, name: str) -> list[Path]:
    """Write `name.json` and, where there is a curve, `name.png` into the folder; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(report_json(report, about), indent=2) + "\n")
    if not report.contexts:
        return [path]
    plot = folder / f"{name}.png"
    _plot(report, plot)
    return [path, plot]


def _plot(report: Report, path: Path) -> None:
    """Bits per byte against context, with lines for the whole document and for the compressors."""
    limited = [score for score in report.contexts if score.context is not None]
    contexts = [score.context or 0 for score in limited]
    values = [_rates(score)["bits_per_byte"] for score in limited]
    total = report.total
    lines = [
        ("model, whole document", _rates(report.contexts[-1])["bits_per_byte"], BLUE, "--"),
        ("gzip -9 on the files", BITS * total.gzip_bytes / total.bytes, RED, ":"),
        ("xz -9e on the files", BITS * total.xz_bytes / total.bytes, GREY, ":"),
    ]
    with plot_axes(path, x_label="tokens of context", y_label="bits per byte") as axes:
        axes.plot(contexts, values, "o-", color=BLUE, markersize=4, linewidth=1.8, label="model")
        for label, value, color, style in lines:
            axes.axhline(value, color=color, linestyle=style, linewidth=1.2, label=f"{label}: {value:.3f}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, labels=[f"{context:,}" for context in contexts])
        tokens = report.contexts[0].tokens
        axes.set_title(f"{path.stem}: the same {tokens:,} tokens under every context", fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=9)


def _rates(score: DocumentScore | ContextScore) -> dict[str, float]:
    return {"bits_per_byte": score.bits / score.bytes, "bits_per_token": score.bits / score.tokens}


def _document_json(score: DocumentScore) -> dict[str, object]:
    compressed = {
        "gzip_bits_per_byte": BITS * score.gzip_bytes / score.bytes,
        "xz_bits_per_byte": BITS * score.xz_bytes / score.bytes,
    }
    return {**asdict(score), **_rates(score), **compressed}
