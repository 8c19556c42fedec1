"""Labelled sequences on disk, memory-mapped: any number of them, of any lengths, one label for each or for each pair.

    <part>.values     all sequences in one row, each position a number or a vector of numbers
    <part>.starts     where each sequence begins, and where the last one ends: int64
    <part>.labels     the label of every example: uint16

An example has one sequence or several; those of one example follow each other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64, Integer, Shaped
from numpy import ndarray

from longreach.tasks.cache_folder import map_file


class Example(NamedTuple):
    """What is written of one example."""

    part: str
    """`train`, `validation` or `test`."""
    sequences: Sequence[Shaped[ndarray, "l *f"]]
    """One sequence, or two where pairs are classified; numbers that the stored type can hold."""
    label: int


class Format(NamedTuple):
    """How sequences are stored."""

    dtype: np.dtype
    """The type of the stored numbers."""
    features: tuple[int, ...] = ()
    """The shape of a position: () for a token, (n,) for n features."""
    sequences: int = 1
    """How many sequences an example has."""


class Padded(NamedTuple):
    """Some examples side by side."""

    values: Shaped[ndarray, "n s l *f"]
    lengths: Int64[ndarray, "n s"]


class LabelledPart:
    """The examples of one part."""

    def __init__(self, folder: Path, part: str, stored: Format) -> None:
        self.stored = stored
        self.values = map_file(folder / f"{part}.values", stored.dtype).reshape(-1, *stored.features)
        starts = map_file(folder / f"{part}.starts", np.dtype("<i8"))
        self.starts: Int64[ndarray, "n s"] = starts[:-1].reshape(-1, stored.sequences)
        self.lengths: Int64[ndarray, "n s"] = np.diff(starts).reshape(-1, stored.sequences)
        self.labels: Integer[ndarray, " n"] = map_file(folder / f"{part}.labels", np.dtype("<u2"))
        self._longest = int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        return len(self.labels)

    def padded(self, rows: Integer[ndarray, " n"]) -> Padded:
        """These examples, followed by zeros up to one of few lengths, never beyond the longest of the part."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        length = min(one_of_few(int(lengths.max(initial=0))), self._longest)
        values = np.zeros((*starts.shape, length, *self.stored.features), self.stored.dtype)
        for place in np.ndindex(starts.shape):
            values[place][: lengths[place]] = self.values[starts[place] : starts[place] + lengths[place]]
        return Padded(values, lengths)


def one_of_few(length: int) -> int:
    """The next of the numbers with five significant bits: at most a sixteenth more.

    Whoever keeps something for every shape that occurs, as oneDNN and CUDA's allocator do, keeps little then: with
    every length of ListOps as it is, a training grows by a megabyte a step.
    """
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


class PartWriter:
    """Writes the three files of one part."""

    def __init__(self, values: BinaryIO, starts: BinaryIO, labels: BinaryIO, stored: Format) -> None:
        self._values, self._starts, self._labels, self._stored = values, starts, labels, stored
        self._end = self._longest = 0
        self._counts: Counter[int] = Counter()

    def add(self, example: Example) -> None:
        """Append an example."""
        for sequence in example.sequences:
            self._starts.write(self._end.to_bytes(8, "little"))
            self._values.write(sequence.astype(self._stored.dtype, copy=False).tobytes())
            self._end += len(sequence)
            self._longest = max(self._longest, len(sequence))
        self._labels.write(example.label.to_bytes(2, "little"))
        self._counts[example.label] += 1

    def close(self) -> None:
        """Write where the last sequence ends."""
        self._starts.write(self._end.to_bytes(8, "little"))

    def summary(self) -> dict[str, object]:
        """What was written, for the record."""
        labels = [self._counts[label] for label in range(max(self._counts, default=-1) + 1)]
        return {"examples": sum(labels), "positions": self._end, "longest": self._longest, "labels": labels}


@contextmanager
def part_writer(folder: Path, part: str, stored: Format) -> Iterator[PartWriter]:
    """A writer of the files of one part, which are complete when the block ends."""
    names = [folder / f"{part}.{kind}" for kind in ("values", "starts", "labels")]
    with names[0].open("wb") as values, names[1].open("wb") as starts, names[2].open("wb") as labels:
        writer = PartWriter(values, starts, labels, stored)
        yield writer
        writer.close()
