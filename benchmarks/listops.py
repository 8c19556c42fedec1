"""ListOps at its full length on one core: a state-space model and a Transformer with the same curriculum and minutes.

python benchmarks/listops.py [--systems s4d transformer] [--runs runs/listops] [--out benchmarks/results/listops]

Expressions get longer in three stages, each a run that begins with the weights of the one before: what an operation
does is learned from short ones, of which a second has many, and what is left to learn at full length is reach.  The
last stage is the Long Range Arena's task: 96,000 expressions of 500 to 2,000 symbols.  Runs that are finished are kept
and others continued, so the script goes on where it was stopped.  Writes a Markdown table, OUT.json and OUT.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt


class Stage(NamedTuple):
    """One run of the curriculum."""

    name: str
    min_length: int
    max_length: int
    batch_size: int
    minutes: int
    evaluated: int
    """Validation examples that choose the checkpoint."""


STAGES = (
    Stage("short", 20, 150, batch_size=128, minutes=5, evaluated=2000),
    Stage("middle", 100, 500, batch_size=64, minutes=10, evaluated=2000),
    Stage("full", 500, 2000, batch_size=32, minutes=50, evaluated=1000),
)
LEARNING_RATES = {"s4d": (5e-3, 5e-3, 4e-3), "transformer": (1e-3, 1e-3, 1e-3)}
WARMUP_STEPS = {"s4d": 100, "transformer": 200}
PUBLISHED = {"s4d": ("S4D-LegS", 60.47), "transformer": ("Transformer", 36.37)}


def train(system: str, runs: Path) -> list[Path]:
    """Train all stages of a system that are not trained yet; their folders."""
    folders = [runs / f"{system}-{stage.name}" for stage in STAGES]
    for i, (stage, run) in enumerate(zip(STAGES, folders, strict=True)):
        if (run / "config.yaml").exists():
            record = json.loads((run / "record.json").read_text())
            if not record.get("result", {}).get("finished"):
                longreach("--resume", str(run))
            continue
        longreach(
            f"--config=configs/lra/listops/{system}.yaml",
            f"--run={run}",
            f"--task.generated.min_length={stage.min_length}",
            f"--task.generated.max_length={stage.max_length}",
            f"--task.loading.batch_size={stage.batch_size}",
            f"--task.loading.evaluation_examples={stage.evaluated}",
            f"--training.minutes={stage.minutes}",
            f"--training.lr={LEARNING_RATES[system][i]}",
            f"--training.warmup_steps={WARMUP_STEPS[system]}",
            "--training.threads=1",
            *([f"--training.start_from={folders[i - 1]}"] if i else []),
        )
    return folders


def longreach(*arguments: str) -> None:
    """`longreach train`, in a process of its own."""
    subprocess.run([sys.executable, "-m", "longreach", "train", *arguments], check=True)


def describe(system: str, folders: list[Path]) -> list[dict]:
    """What each stage came to, and the accuracy on the validation part over the minutes since the first one began."""
    rows, before = [], 0.0
    for stage, run in zip(STAGES, folders, strict=True):
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


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy at full length over minutes, with the published test accuracies."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, row in enumerate(row for row in rows if row["stage"]["name"] == "full"):
        minutes, accuracy = zip(*row["curve"], strict=True)
        name, published = PUBLISHED[row["system"]]
        axes.plot(minutes, [100 * x for x in accuracy], color=f"C{i}", marker="o", ms=3, label=row["system"])
        axes.axhline(published, color=f"C{i}", ls=":", label=f"{name}, published (test)")
    axes.axhline(100 * rows[-1]["test_majority_accuracy"], color="0.6", ls=":", label="most frequent digit")
    axes.set(xlabel="minutes of training on one thread, all stages", ylabel="validation accuracy, percent")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument("--runs", type=Path, default=Path("runs/listops"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/listops"))
    options = parser.parse_args()
    rows = [row for system in options.systems for row in describe(system, train(system, options.runs))]
    print("| system | symbols | minutes | tokens | validation | test | most frequent digit |")
    print("|---" * 7 + "|")
    for row in rows:
        stage, percents = row["stage"], ("accuracy", "test_accuracy", "test_majority_accuracy")
        print(
            f"| {row['system']} | {stage['min_length']} to {stage['max_length']:,} | {row['minutes']:.0f} | "
            f"{row['tokens'] / 1e6:.0f} M | " + " | ".join(f"{100 * row[name]:.1f}" for name in percents) + " |"
        )
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
