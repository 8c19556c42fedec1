"""Trainings in stages, each of which begins with the weights of the one before: run, read and drawn.

Runs that are finished are kept and others continued, so a script that is stopped goes on where it was.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt


class Stage(NamedTuple):
    """One run of a curriculum."""

    name: str
    examples: str
    """What the table calls its examples."""
    options: dict[str, object]
    """Of `longreach train`, where they differ from the configuration's."""


def train(config: str, runs: Path, system: str, stages: Sequence[Stage]) -> list[Path]:
    """Train all stages of a system that are not trained yet, on one thread; returns their folders."""
    folders = [runs / f"{system}-{stage.name}" for stage in stages]
    for i, (stage, run) in enumerate(zip(stages, folders, strict=True)):
        if (run / "config.yaml").exists():
            record = json.loads((run / "record.json").read_text())
            if not record.get("result", {}).get("finished"):
                longreach("--resume", str(run))
            continue
        options = {**stage.options, "training.threads": 1}
        if i:
            options["training.start_from"] = folders[i - 1]
        longreach(f"--config={config}", f"--run={run}", *(f"--{name}={value}" for name, value in options.items()))
    return folders


def longreach(*arguments: str) -> None:
    """`longreach train`, in a process of its own."""
    subprocess.run([sys.executable, "-m", "longreach", "train", *arguments], check=True)


def describe(system: str, stages: Sequence[Stage], folders: list[Path]) -> list[dict]:
    """What each stage came to, and the accuracy on the validation part over the minutes since the first one began."""
    rows, before = [], 0.0
    for stage, run in zip(stages, folders, strict=True):
        record = json.loads((run / "record.json").read_text())
        result, lines = record["result"], [json.loads(line) for line in (run / "metrics.jsonl").open()]
        seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
        judged = [line for line in lines if line["kind"] == "evaluation"]
        rows.append(
            {
                "system": system,
                "stage": stage._asdict(),
                "parameters": record["model"]["parameters"],
                "minutes": result["seconds"] / 60,
                "tokens": result["tokens"],
                **{name: result["metrics"][name] for name in ("accuracy", "test_accuracy", "test_majority_accuracy")},
                "curve": [[before + time_of(line["step"], seconds) / 60, line["accuracy"]] for line in judged],
                "machine": record["machine"],
                "seed": record["seed"],
            }
        )
        before += result["seconds"] / 60
    return rows


def time_of(step: int, seconds: dict[int, float]) -> float:
    """When a step was done; lines of metrics may stand for several steps."""
    return seconds[max((other for other in seconds if other <= step), default=min(seconds))]


def print_table(rows: list[dict]) -> None:
    """A Markdown table with a line for each stage."""
    print("| system | examples | minutes | positions read | validation | test | most frequent label |")
    print("|---" * 7 + "|")
    for row in rows:
        percents = [f"{100 * row[name]:.1f}" for name in ("accuracy", "test_accuracy", "test_majority_accuracy")]
        cells = [row["system"], row["stage"]["examples"], f"{row['minutes']:.0f}", f"{row['tokens'] / 1e6:.0f} M"]
        print("| " + " | ".join([*cells, *percents]) + " |")


def write(rows: list[dict], out: Path, published: dict[str, tuple[str, float]], drawn: Sequence[str]) -> None:
    """OUT.json, and OUT.png: accuracy of the stages in `drawn` over minutes, with published test accuracies in percent.

    The majority's accuracy is that of the last stage.
    """
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    shown = [row for row in rows if row["stage"]["name"] in drawn]
    systems = list(dict.fromkeys(row["system"] for row in shown))
    for row in shown:
        minutes, accuracy = zip(*row["curve"], strict=True)
        number = len(drawn) * systems.index(row["system"]) + drawn.index(row["stage"]["name"])
        label = f"{row['system']}, {row['stage']['examples']}"
        axes.plot(minutes, [100 * x for x in accuracy], color=f"C{number}", marker="o", ms=3, label=label)
    for i, system in enumerate(systems):
        name, accuracy = published[system]
        axes.axhline(accuracy, color=f"C{len(drawn) * (i + 1) - 1}", ls=":", label=f"{name}, published (test)")
    axes.axhline(100 * rows[-1]["test_majority_accuracy"], color="0.6", ls=":", label="most frequent label")
    axes.set(xlabel="minutes of training on one thread, all stages", ylabel="validation accuracy, percent")
    axes.legend(fontsize="small")
    figure.savefig(out.with_suffix(".png"), dpi=150)
