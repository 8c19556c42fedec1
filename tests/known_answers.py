"""Models that know all answers, or none: what every classification task is judged by."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longreach.tasks import Classification, FeatureEncoding, Loading


class Lookup(nn.Module):
    """Looks every example up.

    Args:
        task: says how the stored numbers became what a model reads.
        answers: the label for the stored numbers of all sequences of an example, as a tuple of tuples.
    """

    def __init__(self, task: Classification, answers: dict[tuple[tuple[int, ...], ...], int]) -> None:
        super().__init__()
        self.task, self.answers = task, answers

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One for the label."""
        encoding, pair = self.task.encoding, self.task.sequences == 2
        stored = inputs.double() * encoding.std + encoding.mean if isinstance(encoding, FeatureEncoding) else inputs
        mask = torch.ones(inputs.shape[: 2 + pair], dtype=torch.bool) if mask is None else mask
        rows = zip(stored.round().long() if stored.is_floating_point() else stored, mask, strict=True)
        found = [
            tuple(tuple(v[m].reshape(-1).tolist()) for v, m in (zip(row, real, strict=True) if pair else [(row, real)]))
            for row, real in rows
        ]
        labels = torch.tensor([self.answers[each] for each in found])
        return nn.functional.one_hot(labels, self.task.n_classes).double()


class Constant(nn.Module):
    """Always says the same."""

    def __init__(self, label: int, n_classes: int) -> None:
        super().__init__()
        self.label, self.n_classes = label, n_classes

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """One for the label."""
        return nn.functional.one_hot(torch.full((len(inputs),), self.label), self.n_classes).double()


def judge(task: Classification, answers: dict[tuple[tuple[int, ...], ...], int]) -> None:
    """An oracle is always right on a prepared task; a constant is at chance, where labels are equally frequent."""
    oracle = Lookup(task, answers)
    assert task.evaluate(oracle).metrics["accuracy"] == task.test(oracle)["test_accuracy"] == 1.0
    for part in ("train", "validation", "test"):
        assert task.judge(oracle, part)["accuracy"] == 1.0
    for label in range(task.n_classes):
        found = task.test(Constant(label, task.n_classes))
        assert found["test_accuracy"] == pytest.approx(1 / task.n_classes)
        assert found["test_majority_accuracy"] == pytest.approx(1 / task.n_classes)


def stored(task: Classification, part: str) -> list[tuple[tuple[tuple[int, ...], ...], int]]:
    """Every example of a part in its order: the stored numbers of its sequences, and its label."""
    found = task.part(part)
    rows = zip(found.starts.tolist(), found.lengths.tolist(), found.labels.tolist(), strict=True)
    return [
        (
            tuple(tuple(found.values[a : a + n].reshape(-1).tolist()) for a, n in zip(starts, lengths, strict=True)),
            label,
        )
        for starts, lengths, label in rows
    ]


def everything(task: Classification) -> list[tuple[tuple[tuple[int, ...], ...], int]]:
    """The examples of all parts, sorted."""
    return sorted(example for part in ("train", "validation", "test") for example in stored(task, part))


def small(cache: Path, batch_size: int = 4) -> Loading:
    """Batches for small data."""
    return Loading(batch_size=batch_size, cache=cache)


def prepared(task: Classification) -> Classification:
    """The same task, ready."""
    task.prepare()
    return task


class FakeRows:
    """As a datasets.Dataset, of which only this much is used.

    Args:
        columns: values by name.
    """

    def __init__(self, **columns: list) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __getitem__(self, key: int | str) -> object:
        """A column, or a row."""
        return self.columns[key] if isinstance(key, str) else {name: self.columns[name][key] for name in self.columns}

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])


class FakeHub:
    """Instead of the package `datasets`.

    Args:
        load: gives the rows of a split.
    """

    def __init__(self, load: Callable[[str, str], FakeRows]) -> None:
        self.load = load

    def load_dataset(self, name: str, split: str) -> FakeRows:
        """As in `datasets`."""
        return self.load(name, split)


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Bytes."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)
