"""Pathfinder data sets on disk, in the layout of the Long Range Arena release, read and written.

    pathfinder32/curv_contour_length_14/imgs/<n>/sample_<k>.png      grey images
    pathfinder32/curv_contour_length_14/metadata/<n>.npy             their labels, see `pathfinder_metadata`

The release has empty files among its images (pathfinder32/curv_baseline/imgs/0/sample_172.png); they are left out and
counted.  So are images that no metadata names, as when a file of it was cut between two lines.  Anything else that is
missing or damaged is an error: the loss would go unnoticed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, UnidentifiedImageError

from longreach.errors import InputError
from longreach.tasks.data_files import state_of
from longreach.tasks.images.class_folders import DEEP
from longreach.tasks.lra.pathfinder_metadata import Entry, read_metadata
from longreach.tasks.lra.pathfinder_settings import Difficulty, Resolution


class LabelledImage(NamedTuple):
    """An image of a data set, or None in the place of an empty file."""

    pixels: UInt8[ndarray, "h w"] | None
    label: int
    path: Path


def data_set_name(resolution: Resolution, difficulty: Difficulty) -> str:
    """The folder of a data set within the release."""
    return f"pathfinder{resolution}/curv_{difficulty}"


def find_data_set(folder: Path, resolution: Resolution, difficulty: Difficulty) -> Path:
    """The data set's own folder, where it or one above it is named; raises InputError where it is not there."""
    name = data_set_name(resolution, difficulty)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the one that has {name} of the Long Range Arena release")
    for place in ("", Path(name).name, name, f"lra_release/{name}", f"lra_release/lra_release/{name}"):
        found = folder / place
        parts = {part: (found / part).is_dir() for part in ("imgs", "metadata")}
        if all(parts.values()):
            return found
        if any(parts.values()):
            missing = next(part for part, there in parts.items() if not there)
            raise InputError(f"{found} has no folder {missing}; copy or unpack the whole data set")
    raise InputError(
        f"{folder} has no {name} with imgs and metadata; name the unpacked Long Range Arena release, or make a data "
        "set with `longreach make-data pathfinder`"
    )


def data_set_state(folder: Path) -> str:
    """A digest that changes when something is written to the data set."""
    watched = [*sorted((folder / "metadata").glob("*.npy")), *sorted((folder / "imgs").iterdir())]
    return state_of(watched)


def read_entries(folder: Path) -> list[Entry]:
    """All images of a data set, in the order of the numbers of their folders.

    Raises InputError where a folder has no metadata or the other way round.
    """
    tables = {path.stem: path for path in (folder / "metadata").glob("*.npy")}
    folders = {path.name for path in (folder / "imgs").iterdir() if path.is_dir() and path.name.isdigit()}
    for number in sorted(set(tables) ^ folders):
        absent = f"imgs/{number}" if number in tables else f"metadata/{number}.npy"
        raise InputError(f"{folder} has no {absent}; the data set is not complete, copy or unpack it again")
    entries = [entry for number in sorted(tables, key=int) for entry in read_metadata(tables[number])]
    if not entries:
        raise InputError(f"{folder} has no images; copy or unpack the data set again")
    return entries


def unlisted_images(folder: Path, entries: list[Entry]) -> list[str]:
    """The images that are there and that no metadata names, relative to the data set's folder."""
    listed = {str(entry.image) for entry in entries}
    found = (
        f"imgs/{place.name}/{image.name}" for place in (folder / "imgs").iterdir() for image in place.glob("*.png")
    )
    return sorted(set(found) - listed)


def read_images(folder: Path, entries: list[Entry], resolution: int) -> Iterator[LabelledImage]:
    """The images themselves; raises InputError for a missing, damaged or differently sized one."""
    for entry in entries:
        path = folder / entry.image
        yield LabelledImage(_read_image(path, resolution), entry.label, path)


def _read_image(path: Path, resolution: int) -> UInt8[ndarray, "h w"] | None:
    try:
        if path.stat().st_size == 0:
            return None
        with Image.open(path) as image:
            if image.mode in DEEP:
                raise InputError(f"{path} has more than 8 bits for a number (mode {image.mode}); convert it")
            pixels = np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; the data set is not complete, copy or unpack it again") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = re.sub(r" <.*|\s+", " ", str(error)).strip()
        raise InputError(f"{path} is damaged ({reason}); copy or unpack the data set again") from None
    if pixels.shape != (resolution, resolution):
        size = " x ".join(map(str, pixels.shape))
        raise InputError(f"{path} has {size} pixels, not {resolution} x {resolution}; set resolution to what it is")
    return pixels
