"""Images in IDX files, as MNIST and its relatives have them (http://yann.lecun.com/exdb/mnist/, LeCun et al. 1998).

    train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte

each also as .gz, and with a dot in front of `idx`.  A file is 0, 0, 8 (for bytes) and the number of axes, a byte each;
the length of every axis in four bytes, the highest first; and the numbers.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.data_files import state_of
from longreach.tasks.images.sources import ImageSource, LabelledImages, checked_labels

PREFIXES = {"train": "train", "test": "t10k"}
KINDS = {"images": 3, "labels": 1}
"""What there are files of, and their number of axes."""


class IdxFiles(ImageSource):
    """The four files of a data set.

    Args:
        folder: Where they are.
        n_classes: Labels are less than this.
    """

    def __init__(self, folder: Path, n_classes: int) -> None:
        self.folder, self.where, self._n_classes = folder, str(folder), n_classes

    def state(self) -> str:
        """The state of the files, all of which are there."""
        return state_of(self._file(part, kind) for part in PREFIXES for kind in KINDS)

    def n_classes(self) -> None:
        """The files do not say."""
        return

    def parts(self) -> dict[str, LabelledImages]:
        """The images to train and those to test."""
        return {part: self._part(part) for part in PREFIXES}

    def _part(self, part: str) -> LabelledImages:
        paths = {kind: self._file(part, kind) for kind in KINDS}
        images, labels = (read_idx(path, KINDS[kind]) for kind, path in paths.items())
        if len(images) != len(labels):
            raise InputError(
                f"{paths['images']} has {len(images)} images, but {paths['labels']} {len(labels)} labels; "
                "copy both again"
            )
        checked = checked_labels(labels, self._n_classes, str(paths["labels"]))
        return LabelledImages(checked, lambda i: images[i, :, :, None], lambda i: f"image {i} of {paths['images']}")

    def _file(self, part: str, kind: str) -> Path:
        names = idx_names(part, kind)
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        raise InputError(f"{self.folder} has no {names[0]} nor {names[1]}; copy all four files")


def idx_names(part: str, kind: str) -> list[str]:
    """What a file may be called."""
    stems = [f"{PREFIXES[part]}-{kind}{mark}idx{KINDS[kind]}-ubyte" for mark in "-."]
    return [stem + suffix for stem in stems for suffix in ("", ".gz")]


def has_idx_files(folder: Path) -> bool:
    """Whether there is one of the four files in a folder."""
    return any((folder / name).is_file() for part in PREFIXES for kind in KINDS for name in idx_names(part, kind))


def read_idx(path: Path, n_axes: int) -> UInt8[ndarray, "..."]:
    """The bytes in a file; raises InputError where they are not all there or it is something else."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged or incomplete ({error}); download or copy it again") from None
    start = 4 + 4 * n_axes
    if content[:4] != bytes([0, 0, 8, n_axes]) or len(content) < start:
        raise InputError(f"{path} is no IDX file of bytes with {n_axes} axes; copy it again, or unpack it")
    shape = np.frombuffer(content, ">u4", n_axes, 4).tolist()
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{path} has {len(content) - start} numbers instead of {' x '.join(map(str, shape))}; copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
