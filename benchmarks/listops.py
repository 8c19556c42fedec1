"""ListOps at its full length on one core: a state-space model and a Transformer with the same curriculum and minutes.

python benchmarks/listops.py [--systems s4d transformer] [--runs runs/listops] [--out benchmarks/results/listops]

Expressions get longer in three stages: what an operation does is learned from short ones, of which a second has many,
and what is left to learn at full length is reach.  The last stage is the Long Range Arena's task: 96,000 expressions of
500 to 2,000 symbols.  Writes a Markdown table, OUT.json and OUT.png.
"""

import argparse
from pathlib import Path

import curriculum
from curriculum import Stage

LEARNING_RATES = {"s4d": (5e-3, 5e-3, 4e-3), "transformer": (1e-3, 1e-3, 1e-3)}
WARMUP_STEPS = {"s4d": 100, "transformer": 200}
PUBLISHED = {"s4d": ("S4D-LegS", 60.47), "transformer": ("Transformer", 36.37)}


def stages(system: str) -> list[Stage]:
    """Short, middle and full length."""
    short, middle, full = LEARNING_RATES[system]
    return [
        stage(system, "short", (20, 150), batch_size=128, minutes=5, evaluated=2000, lr=short),
        stage(system, "middle", (100, 500), batch_size=64, minutes=10, evaluated=2000, lr=middle),
        stage(system, "full", (500, 2000), batch_size=32, minutes=50, evaluated=1000, lr=full),
    ]


def stage(
    system: str, name: str, lengths: tuple[int, int], *, batch_size: int, minutes: int, evaluated: int, lr: float
) -> Stage:
    """Expressions of some lengths; `evaluated` ones of the validation part choose the checkpoint."""
    options = {
        "task.generated.min_length": lengths[0],
        "task.generated.max_length": lengths[1],
        "task.loading.batch_size": batch_size,
        "task.loading.evaluation_examples": evaluated,
        "training.minutes": minutes,
        "training.lr": lr,
        "training.warmup_steps": WARMUP_STEPS[system],
    }
    return Stage(name, f"{lengths[0]} to {lengths[1]:,} symbols", options)


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=LEARNING_RATES, default=list(LEARNING_RATES))
    parser.add_argument("--runs", type=Path, default=Path("runs/listops"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/listops"))
    options = parser.parse_args()
    rows = []
    for system in options.systems:
        folders = curriculum.train(f"configs/lra/listops/{system}.yaml", options.runs, system, stages(system))
        rows += curriculum.describe(system, stages(system), folders)
    curriculum.print_table(rows)
    curriculum.write(rows, options.out, PUBLISHED, ["full"])


if __name__ == "__main__":
    main()
