"""Pathfinder of 32 x 32 pixels on one core: long convolutions that begin with short contours.

python benchmarks/pathfinder.py [--runs runs/pathfinder] [--out benchmarks/results/pathfinder]

With contours of 14 dashes models stayed at chance for the 100,000 images that were tried.  Those of 3
are learned within a minute, because ends that belong together are near, and from there it is a small step to 6 (the
Long Range Arena's `baseline`), 9 and 14, the last of which is its task.  Writes a Markdown table, OUT.json and OUT.png.
"""

import argparse
from pathlib import Path

import curriculum
from curriculum import Stage

PUBLISHED = {"longconv": ("long convolutions, Fu et al. 2023", 94.0)}


def stage(
    name: str, examples: str, difficulty: str, *, images: int, minutes: int, lr: float = 3e-3, seed: int = 0
) -> Stage:
    """Contours of one length."""
    recipe = {"difficulty": difficulty, "images": images, "seed": seed}
    options = {f"task.recipe.{key}": value for key, value in recipe.items()}
    return Stage(name, examples, {**options, "training.minutes": minutes, "training.lr": lr})


STAGES = [
    stage("3", "contours of 3 dashes", "contour_length_3", images=50_000, minutes=2),
    stage("6", "contours of 6 dashes", "baseline", images=150_000, minutes=6),
    stage("9", "contours of 9 dashes", "contour_length_9", images=200_000, minutes=12),
    stage("14", "contours of 14 dashes", "contour_length_14", images=250_000, minutes=40),
    stage("14-others", "other images of 14 dashes", "contour_length_14", images=250_000, minutes=16, lr=2e-3, seed=1),
]


def main() -> None:
    """Train what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/pathfinder"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pathfinder"))
    options = parser.parse_args()
    folders = curriculum.train("configs/lra/pathfinder/longconv.yaml", options.runs, "longconv", STAGES)
    rows = curriculum.describe("longconv", STAGES, folders)
    curriculum.print_table(rows)
    curriculum.write(rows, options.out, PUBLISHED, [stage.name for stage in STAGES])


if __name__ == "__main__":
    main()
