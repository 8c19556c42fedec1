"""Pathfinder data sets of our own: many images, by as many processes as there are cores, in the release's layout.

A data set is written in folders of a thousand images.  Each is made beside its place and moved there, its metadata
last; so whenever the work is stopped, what is there is whole, and the same command goes on with what is missing.
"""

import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from longreach.disk import replace_text, writing
from longreach.errors import InputError
from longreach.tasks.lra.pathfinder_images import PathfinderImages, make_images
from longreach.tasks.lra.pathfinder_metadata import read_metadata
from longreach.tasks.lra.pathfinder_release import data_set_name
from longreach.tasks.lra.pathfinder_settings import Difficulty, Resolution, pathfinder_settings

IMAGES_IN_A_FOLDER = 1000
RECIPE = "generated.json"
N_CONTRASTS = 1
"""Brightnesses of dashes, among which the published generator can choose; all data sets have one."""

A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class PathfinderRecipe:
    """A data set of our own.

    Args:
        resolution: Height and width of the images.
        difficulty: How long the contours are, as the release names it.
        images: How many.
        seed: Another seed, other images.
    """

    resolution: Resolution = 32
    difficulty: Difficulty = "contour_length_14"
    images: int = 200_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise InputError(f"images = {self.images} must be at least 1")

    def folders(self) -> list[range]:
        """The images of each folder."""
        firsts = range(0, self.images, IMAGES_IN_A_FOLDER)
        return [range(first, min(first + IMAGES_IN_A_FOLDER, self.images)) for first in firsts]


def made_images(recipe: PathfinderRecipe, workers: int | None = None) -> Iterator[PathfinderImages]:
    """All images of a data set, a thousand at a time, in their order; by default made on all cores."""
    return _map_in_processes(partial(_make_folder, recipe), recipe.folders(), workers)


def write_images(folder: Path, recipe: PathfinderRecipe, workers: int | None = None) -> Iterator[int]:
    """Write a data set into its folder; tells how many images are there, after each folder of them.

    Folders that are there are kept.  Raises InputError where others than these images are in the way.
    """
    with writing(folder):
        for part in ("imgs", "metadata"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    _require_same_recipe(folder, recipe)
    missing = [images for images in recipe.folders() if not _is_written(folder, images)]
    there = recipe.images - sum(map(len, missing))
    yield there
    for images in _map_in_processes(partial(_write_folder, folder, recipe), missing, workers):
        there += len(images)
        yield there


def write_pathfinder(
    out: Path, recipe: PathfinderRecipe, advance: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[str, int]]:
    """Write a data set into its place below a folder; tells in the end its name and number of images.

    `advance` hears now and then how many of all images are there.
    """
    name = data_set_name(recipe.resolution, recipe.difficulty)
    for there in write_images(out / name, recipe):
        advance(there, recipe.images)
    yield name, recipe.images


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _map_in_processes(function: Callable[[A], R], arguments: Iterable[A], workers: int | None) -> Iterator[R]:
    """The results in their order; no more than a few wait for whoever takes them."""
    arguments = list(arguments)
    workers = min(workers or usable_cores(), len(arguments))
    if workers < 2:
        yield from map(function, arguments)
        return
    # fresh processes: one that is forked from a process with threads can stand still for ever
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        rest = iter(arguments)
        started = deque(pool.submit(function, argument) for argument in islice(rest, 2 * workers))
        try:
            while started:
                result = started.popleft().result()
                started.extend(pool.submit(function, argument) for argument in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _make_folder(recipe: PathfinderRecipe, images: range) -> PathfinderImages:
    settings = pathfinder_settings(recipe.resolution, recipe.difficulty)
    return make_images(settings, recipe.seed, np.arange(images.start, images.stop))


def _write_folder(folder: Path, recipe: PathfinderRecipe, images: range) -> range:
    """Make and write the images of one folder; returns which they are."""
    settings, made = pathfinder_settings(recipe.resolution, recipe.difficulty), _make_folder(recipe, images)
    number = images.start // IMAGES_IN_A_FOLDER
    place, table = folder / "imgs" / str(number), folder / "metadata" / f"{number}.npy"
    unfinished = place.with_name(f"{number}.part")
    common = f"{settings.continuity} {settings.contour_length} {settings.distractor_length}"
    shape = f"{settings.segment_length} {settings.thickness}"
    lines = []
    with writing(place):
        table.unlink(missing_ok=True)
        for remains in (unfinished, place):  # of a process that was killed
            shutil.rmtree(remains, ignore_errors=True)
        unfinished.mkdir()
        for k, (pixels, label, margin) in enumerate(zip(made.pixels, made.labels, made.margins, strict=True)):
            Image.fromarray(pixels).save(unfinished / f"sample_{k}.png")
            lines.append(f"imgs/{number} sample_{k}.png {k} {label} {common} {shape} {margin} {N_CONTRASTS}\n")
        unfinished.rename(place)
    replace_text(table, "".join(lines))
    return images


def _is_written(folder: Path, images: range) -> bool:
    number = images.start // IMAGES_IN_A_FOLDER
    table = folder / "metadata" / f"{number}.npy"
    return table.exists() and (folder / "imgs" / str(number)).is_dir() and len(read_metadata(table)) == len(images)


def _require_same_recipe(folder: Path, recipe: PathfinderRecipe) -> None:
    """Raise InputError where the folder has other images; more or fewer of the same ones do no harm."""
    path = folder / RECIPE
    wanted = {key: value for key, value in asdict(recipe).items() if key != "images"}
    if path.exists():
        found = json.loads(path.read_text())
        if found != wanted:
            raise InputError(f"{folder} has images made by {found}, not by {wanted}; name another folder")
    elif any((folder / "imgs").iterdir()):
        raise InputError(f"{folder} has images that were not made by this program; name another folder")
    else:
        replace_text(path, json.dumps(wanted))
