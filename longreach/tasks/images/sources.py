"""What a collection of labelled images is, wherever it is kept; and where it is kept, found from what is there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.classification import PARTS
from longreach.tasks.orders import split


class LabelledImages(NamedTuple):
    """Images, grey (c = 1) or coloured (c = 3), each read when it is asked for."""

    labels: Sequence[int]
    read: Callable[[int], UInt8[ndarray, "h w c"]]
    name: Callable[[int], str]
    """What messages call an image."""


class ImageSource(ABC):
    """Labelled images of one or more parts."""

    where: str
    """What messages call it."""

    @abstractmethod
    def state(self) -> str:
        """A digest that changes when the files do."""

    @abstractmethod
    def parts(self) -> dict[str, LabelledImages]:
        """The images of `train` and, where the source has them, of `validation` and `test`."""

    @abstractmethod
    def n_classes(self) -> int | None:
        """Number of classes, where the source says so."""


class Place(NamedTuple):
    """An image in a source, and the part that it is of here."""

    part: str
    source_part: str
    number: int


def assign(parts: Mapping[str, LabelledImages], held_out: float, seed: int) -> list[Place]:
    """The part of every image: as the source says; what the source has not is held out of what there is to train.

    Raises InputError where there is too little.
    """
    missing = {part: held_out for part in PARTS if part not in parts}
    drawn = split(len(parts["train"].labels), missing, seed, "images")
    places = [Place(part, "train", index) for index, part in enumerate(drawn)]
    for part in PARTS[1:]:
        if part in parts:
            places += [Place(part, part, index) for index in range(len(parts[part].labels))]
    return places


def require_classes(source: ImageSource, n_classes: int) -> None:
    """Raise InputError unless the source has as many classes as a task says."""
    found = source.n_classes()
    if found not in (None, n_classes):
        raise InputError(f"{source.where} has {found} classes, but n_classes is {n_classes}; set it to {found}")


def checked_labels(labels: UInt8[ndarray, " n"], n_classes: int, where: str) -> list[int]:
    """Labels as a list; raises InputError for one beyond the classes, as in a damaged file."""
    if labels.size and labels.max() >= n_classes:
        at = int(np.argmax(labels >= n_classes))
        raise InputError(
            f"{where}: the label of image {at} is {labels[at]}, but there are {n_classes} classes; the file may be "
            "damaged, copy it again"
        )
    return labels.tolist()
