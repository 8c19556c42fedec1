"""What a Pathfinder data set says about its images: metadata/<n>.npy, one row of eleven fields for each image.

    imgs/0 sample_7.png 7 1 1.8 14 4 5 1.5 3 1      folder, file, number, label, and the generator's settings

There are two kinds of such files: those of the release are text in spite of their name, and the published generator
writes arrays, of strings or of Python objects.  The latter are pickles, which can run any program when they are loaded.
They are never loaded here: their instructions are read one by one, and anything but a plain list is refused.
"""

import pickletools
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from longreach.errors import InputError

N_FIELDS = 11
LABEL = 3
REMEDY = "copy or unpack the data set again, or save the file as text, one line for each image"
PUSHES_VALUE = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
REMEMBERS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
RECALLS = {"GET", "BINGET", "LONG_BINGET"}
STRUCTURE = {"MARK", "APPEND", "APPENDS", "FRAME", "TUPLE", "BUILD", "STOP"}


class Entry(NamedTuple):
    """What is known of an image."""

    image: PurePosixPath
    """Its file, relative to the data set's folder."""
    label: int


def read_metadata(path: Path) -> list[Entry]:
    """The rows of a file of either kind; raises InputError, which names the file and what is wrong, for any other."""
    content = path.read_bytes()
    if not content:
        raise InputError(f"{path} is empty; {REMEDY}")
    try:
        rows = _array_rows(content) if content.startswith(b"\x93NUMPY") else _text_rows(content)
        return [_entry(row) for row in rows]
    except ValueError as problem:
        raise InputError(f"{path}: {problem}; {REMEDY}") from None


def _text_rows(content: bytes) -> list[list[str]]:
    return [line.split() for line in content.decode().splitlines() if line.strip()]


def _array_rows(content: bytes) -> list[list[str]]:
    """The rows of an array of strings or objects; ValueError where it is something else."""
    stream = BytesIO(content)
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    if len(shape) != 2 or fortran_order:
        raise ValueError(f"an array of shape {shape} instead of rows of {N_FIELDS} fields")
    if dtype.kind == "O":
        values = [str(value) for value in _plain_list(stream.read())]
        if len(values) != shape[0] * shape[1]:
            raise ValueError(f"{len(values)} values instead of {shape[0]} times {shape[1]}")
        return [values[first : first + shape[1]] for first in range(0, len(values), shape[1])]
    if dtype.kind not in "SU":
        raise ValueError(f"an array of {dtype} instead of strings")
    rows = np.load(BytesIO(content), allow_pickle=False)
    return (np.char.decode(rows, "ascii") if dtype.kind == "S" else rows).tolist()


def _plain_list(pickled: bytes) -> Iterator[object]:
    """The numbers and strings of the list that a pickled array of objects ends with, found without running anything."""
    memo: dict[int, object] = {}
    last: object = None
    inside = False
    for instruction, argument, _ in pickletools.genops(pickled):
        name = instruction.name
        if name in REMEMBERS:
            memo[len(memo) if argument is None else argument] = last
        elif not inside and name in ("EMPTY_LIST", "LIST"):
            inside, last = True, None
        elif not inside:
            last = argument if name in PUSHES_VALUE else None
        elif name in PUSHES_VALUE or (name in RECALLS and memo.get(int(str(argument))) is not None):
            last = memo[int(str(argument))] if name in RECALLS else argument
            yield last
        elif name not in STRUCTURE:
            raise ValueError(f"a pickle that is not a list of numbers and strings (it has a {name}) is not read")


def _entry(row: list[str]) -> Entry:
    if len(row) < N_FIELDS:  # as at the end of half a file
        raise ValueError(f"{len(row)} fields instead of {N_FIELDS}: {' '.join(row)!r}")
    image = PurePosixPath(row[0]) / row[1]
    if image.is_absolute() or ".." in image.parts:
        raise ValueError(f"{str(image)!r} is outside of the data set")
    try:
        label = float(row[LABEL])
    except ValueError:
        label = -1.0
    if label not in (0, 1):
        raise ValueError(f"the label of {image} is {row[LABEL]!r}, neither 0 nor 1")
    return Entry(image, int(label))
