"""CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html), the binary version.

    data_batch_1.bin ... data_batch_5.bin, test_batch.bin      10,000 images each
    one image: its label in a byte, then 1,024 bytes of red, as many of green and of blue, row by row

as the folder cifar-10-batches-bin, or in the archive cifar-10-binary.tar.gz, which need not be unpacked.  The "python
version" consists of pickles, which can run any program when they are loaded; it is refused.
"""

from pathlib import Path, PurePosixPath

import numpy as np
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.data_files import first_present, read_archive, state_of
from longreach.tasks.images.sources import ImageSource, LabelledImages, checked_labels

N_CLASSES = 10
SIDE = 32
RECORD = 1 + 3 * SIDE**2
"""Bytes of an image with its label."""
FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
NAMES = [name for names in FILES.values() for name in names]
PLACES = ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-binary.tar")
PYTHON_VERSION = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "data_batch_1")


class CifarFiles(ImageSource):
    """The files of the binary version.

    Args:
        found: The folder with the files, or the archive.
    """

    def __init__(self, found: Path) -> None:
        self.found, self.where = found, str(found)

    def state(self) -> str:
        """The state of the files, all of which are there."""
        return state_of([self.found] if self.found.is_file() else [self._file(name) for name in NAMES])

    def n_classes(self) -> int:
        """Always the same."""
        return N_CLASSES

    def parts(self) -> dict[str, LabelledImages]:
        """50,000 images to train and 10,000 to test."""
        if self.found.is_file():
            members = read_archive(self.found, lambda name: PurePosixPath(name).name in NAMES)
            content = {PurePosixPath(name).name: data for name, data in members}
        else:
            content = {name: self._file(name).read_bytes() for name in NAMES}
        absent = [name for name in NAMES if name not in content]
        if absent:
            raise InputError(f"{self.found} has no {', '.join(absent)}; it is not CIFAR-10's binary version")
        return {part: self._part(part, [self._records(name, content[name]) for name in FILES[part]]) for part in FILES}

    def _file(self, name: str) -> Path:
        path = self.found / name
        if not path.is_file():
            raise InputError(f"{self.found} has no {name}; copy or unpack cifar-10-binary.tar.gz again")
        return path

    def _records(self, name: str, content: bytes) -> ndarray:
        if not content or len(content) % RECORD:
            raise InputError(
                f"{name} of {self.found} has {len(content)} bytes, which are no whole number of images of {RECORD} "
                "bytes; copy or unpack it again"
            )
        return np.frombuffer(content, np.uint8).reshape(-1, RECORD)

    def _part(self, part: str, batches: list[ndarray]) -> LabelledImages:
        records = np.concatenate(batches)
        planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
        labels = checked_labels(records[:, 0], N_CLASSES, f"the {part} part of {self.found}")
        return LabelledImages(
            labels, lambda i: planes[i].transpose(1, 2, 0), lambda i: f"{part} image {i} of {self.where}"
        )


def find_cifar(data: Path) -> CifarFiles | None:
    """CIFAR-10 as it is named or in the folder that is named; None if it is not there.

    Raises InputError where only the python version is.
    """
    if data.name.startswith("cifar-10-python"):
        raise InputError(_refusal(data))
    if (data.is_file() and ".tar" in data.name) or (data / FILES["train"][0]).is_file():
        return CifarFiles(data)
    found = first_present(data, PLACES)
    if found is not None:
        return CifarFiles(found)
    pickled = first_present(data, PYTHON_VERSION)
    if pickled is not None:
        raise InputError(_refusal(pickled))
    return None


def _refusal(pickled: Path) -> str:
    return (
        f"{pickled} is CIFAR-10's python version: pickles, which can run any program, and which are not read; take the "
        "binary version, cifar-10-binary.tar.gz"
    )
