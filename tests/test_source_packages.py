"""Telling packages apart by their source: files are in one part only, classes are balanced, answers are known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longreach.errors import InputError
from longreach.tasks import Loading, SourcePackages
from longreach.tasks.source_packages import _File, split_files
from tests.classification_toys import Constant

PARTS = ("train", "validation", "test")
SMALL = {"n_packages": 3, "length": 64, "train": 30, "held_out": 10}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Four packages of 30 files, each file with a mark of its own in every line; and what is no package."""
    root = tmp_path / "source"
    for number, name in enumerate(("red", "green", "blue", "small")):
        (root / name).mkdir(parents=True)
        for file in range(30):
            line = f"{name} {file:02d}\n".encode()
            (root / name / f"{file:02d}.py").write_bytes(line * (4 if name == "small" else 60 + number))
    (root / "alone.py").write_text("in no package\n" * 1000)
    return root


def prepared(packages: Path, tmp_path: Path, **options: object) -> SourcePackages:
    loading = Loading(batch_size=8, cache=tmp_path / "cache")
    task = SourcePackages(str(packages), **{**SMALL, **options}, loading=loading)
    task.prepare()
    return task


def stretches(task: SourcePackages, part: str) -> list[tuple[bytes, int]]:
    found = task.part(part)
    values, lengths = found.padded(np.arange(len(found)))
    assert (lengths == task.length).all()
    return [(bytes(row), int(label)) for row, label in zip(values[:, 0].astype(np.uint8), found.labels, strict=True)]


def test_stretches_are_of_their_package_and_files_of_one_part(packages: Path, tmp_path: Path) -> None:
    task = prepared(packages, tmp_path)
    names = task.record()["packages"]
    assert names == ["blue", "green", "red"]
    seen: dict[str, set[bytes]] = {}
    for part in PARTS:
        found = stretches(task, part)
        assert np.bincount([label for _, label in found]).tolist() == [30 if part == "train" else 10] * 3
        for text, label in found:
            lines = text.split(b"\n")[1:-1]  # the first and the last may be cut
            assert all(line.startswith(names[label].encode()) for line in lines)
            seen.setdefault(part, set()).update(lines)
    assert seen["train"].isdisjoint(seen["test"] | seen["validation"])
    assert seen["test"].isdisjoint(seen["validation"])
    assert len(seen["train"]) > 20


def test_the_seed_decides_and_repeats(packages: Path, tmp_path: Path) -> None:
    first, again = (stretches(prepared(packages, tmp_path / name), "train") for name in ("a", "b"))
    other = stretches(prepared(packages, tmp_path, seed=1), "train")
    assert first == again
    assert first != other
    assert len({text for text, _ in first}) > 80


def test_files_that_are_too_large_to_hold_out_are_learned_from() -> None:
    files = [_File("large", b"a" * 500), *(_File(str(n), bytes([n]) * 20) for n in range(25))]
    for seed in range(5):
        parts = split_files(files, seed, "package")
        assert b"a" in parts["train"]
        assert sum(map(len, parts.values())) == 1000
        assert 100 <= len(parts["test"]) < 120
        assert 100 <= len(parts["validation"]) < 120


def test_a_constant_is_at_chance_and_an_oracle_is_right(packages: Path, tmp_path: Path) -> None:
    task = prepared(packages, tmp_path)

    class Oracle(torch.nn.Module):
        """Each package has a letter that no other one has."""

        def forward(self, inputs: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return torch.stack([(inputs == ord(letter)).sum(-1).double() for letter in "bgr"], -1) * own

    own = torch.tensor([1.0, 1.0, 0.1])  # there is an r in green, too
    assert task.judge(Oracle(), "test")["accuracy"] == 1.0
    for metrics in (task.judge(Constant(1), "test"), task.judge(Constant(2), "validation")):
        assert metrics["accuracy"] == metrics["majority_accuracy"] == pytest.approx(1 / 3)


def test_the_standard_library_has_packages_enough(tmp_path: Path) -> None:
    task = SourcePackages(n_packages=6, train=2, held_out=2, loading=Loading(batch_size=2, cache=tmp_path))
    task.prepare()
    assert len(task.record()["packages"]) == 6
    assert "test" not in task.record()["packages"]
    batch = task.batch(0, 0, 1)
    assert batch.inputs.shape == (2, 4096)
    assert batch.mask is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_packages": 1}, "n_packages = 1 must be at least 2"),
        ({"length": 0}, "length = 0 must be at least 1"),
        ({"train": 0}, "train = 0 must be at least 1"),
        ({"held_out": 0}, "held_out = 0 must be at least 1"),
        ({"n_packages": 4}, "has 3 packages with files enough for three parts, not n_packages = 4"),
    ],
)
def test_mistakes_are_named(packages: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(packages, tmp_path, **options)
