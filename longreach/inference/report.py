"""What an evaluation looks like: tables for people, JSON for programs, a plot of the curve against context."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from longreach.inference.evaluation import ContextScore, DocumentScore, Report

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
    limits = ", as far as the limits allow" if report.left_out else ""
    sizes = f"{len(report.documents):,} documents, {total.bytes:,} bytes, {total.tokens:,} tokens{limits}"
    against = Table(title=f"Whole documents: {sizes}", title_justify="left")
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
    _plot(report, plot, name)
    return [path, plot]


def _plot(report: Report, path: Path, name: str) -> None:
    """Bits per byte against context, with lines for the whole document and for the compressors."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    limited = [score for score in report.contexts if score.context is not None]
    contexts = [score.context or 0 for score in limited]
    values = [_rates(score)["bits_per_byte"] for score in limited]
    axes.plot(contexts, values, marker="o", color="#1f6feb", label="model, so much context")
    for score in report.contexts:
        if score.context is None:
            value = _rates(score)["bits_per_byte"]
            axes.axhline(
                value, color="#1f6feb", linestyle="--", linewidth=1, label=f"model, whole document: {value:.3f}"
            )
    total = report.total
    for compressor, size, color in (("gzip -9", total.gzip_bytes, "#888888"), ("xz -9e", total.xz_bytes, "#444444")):
        value = BITS * size / total.bytes
        axes.axhline(value, color=color, linestyle=":", linewidth=1.2, label=f"{compressor}, whole files: {value:.3f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, labels=[f"{context:,}" for context in contexts])
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("bits per byte")
    axes.set_title(
        f"{name}: the same {report.contexts[0].tokens:,} tokens under every context", fontsize=10, loc="left"
    )
    axes.grid(visible=True, alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _rates(score: DocumentScore | ContextScore) -> dict[str, float]:
    return {"bits_per_byte": score.bits / score.bytes, "bits_per_token": score.bits / score.tokens}


def _document_json(score: DocumentScore) -> dict[str, object]:
    compressed = {
        "gzip_bits_per_byte": BITS * score.gzip_bytes / score.bytes,
        "xz_bits_per_byte": BITS * score.xz_bytes / score.bytes,
    }
    return {**asdict(score), **_rates(score), **compressed}
