"""Every configuration of the Long Range Arena reads, builds, and fits its task."""

from pathlib import Path

import pytest
import torch

from longreach.tasks import Classification
from longreach.training import read_experiment

FOLDER = Path(__file__).parent.parent / "configs" / "lra"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
LENGTHS = {
    "listops": 2000,
    "pathfinder": 1024,
    "text": 4096,
    "retrieval": 4000,
    "image": 1024,
    "speechcommands": 16_000,
    "sequentialimages": 784,
}
"""The longest sequence of each task."""


def test_there_are_configurations() -> None:
    assert {path.stem for path in (FOLDER / "listops").iterdir()} >= {"s4d", "mega", "transformer"}
    assert all((FOLDER / task / "s4d.yaml").exists() for task in LENGTHS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_configuration_builds_and_fits_its_task(path: Path) -> None:
    experiment = read_experiment(path)
    task = experiment.task
    assert isinstance(task, Classification)
    assert type(task).__name__.lower() == path.parent.name
    with torch.device("meta"):  # shapes only: no memory, whatever the size
        model = experiment.model(task.encoding.size)
    task.require_fit(model)
    assert model.max_length is None or model.max_length >= LENGTHS[path.parent.name]
