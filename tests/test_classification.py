"""Classification tasks: caches, batches, losses, and what an accuracy is worth."""

from pathlib import Path

import numpy as np
import pytest
from classification_toys import SIZES, Constant, MajorityTask, Oracle


def prepared(root: Path, **options: object) -> MajorityTask:
    task = MajorityTask(root, **options)
    task.prepare()
    return task


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_an_oracle_is_always_right_and_a_constant_at_chance(tmp_path: Path, features: bool, pair: bool) -> None:
    task = prepared(tmp_path, features=features, pair=pair)
    assert task.evaluate(Oracle()).metrics["accuracy"] == 1.0
    assert task.test(Oracle())["test_accuracy"] == 1.0
    for part in SIZES:
        frequency = np.bincount(task.part(part).labels, minlength=3) / SIZES[part]
        for label in range(3):
            found = task.judge(Constant(label), part)
            assert found["accuracy"] == pytest.approx(frequency[label])
            assert found["majority_accuracy"] == pytest.approx(frequency.max())
            assert found["accuracy"] <= found["majority_accuracy"]
