"""Pathfinder and Path-X of the Long Range Arena: images as sequences of pixels, does one contour join the two discs?

(https://arxiv.org/abs/2011.04006.)  Pathfinder has 32 x 32 = 1,024 pixels, Path-X 128 x 128 = 16,384, row by row.  Half
of all images are of either label.  Every pixel is data, also the black ones: nothing is padding.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.cache_folder import Header
from longreach.tasks.classification import PARTS, Classification, Loading
from longreach.tasks.encodings import FeatureEncoding, TokenEncoding
from longreach.tasks.labelled import Example
from longreach.tasks.lra.counter_random import keys_of, uniform
from longreach.tasks.lra.pathfinder_generation import PathfinderRecipe, made_images
from longreach.tasks.lra.pathfinder_release import (
    data_set_state,
    find_data_set,
    read_entries,
    read_images,
    unlisted_images,
)

Pixels = Literal["centred", "unit", "tokens"]

ENCODINGS: dict[Pixels, TokenEncoding | FeatureEncoding] = {
    "centred": FeatureEncoding(mean=127.5, std=127.5),
    "unit": FeatureEncoding(std=255.0),
    "tokens": TokenEncoding(256),
}
HELD_OUT = 0.1
"""The share of validation, and that of test."""


class Pathfinder(Classification):
    """Whether the two marked ends belong to one contour.

    Args:
        recipe: Which of the data sets: resolution and difficulty; and, if it is made here, how many images and a seed.
        data: A folder with the data set in the release's layout; by default images are made by the same rules.
        pixels: What a pixel is: a number in [-1, 1] (`centred`) or in [0, 1] (`unit`), as in the S4 family's pipelines,
            or one of 256 `tokens`, as in the Long Range Arena's.
        split_seed: Decides which images are of which part: 80% to train, 10% to validate and 10% to test.
        loading: How examples are put together and where they are kept.
    """

    n_classes = 2

    def __init__(
        self,
        recipe: PathfinderRecipe = PathfinderRecipe(),  # noqa: B008 (immutable)
        data: Path | None = None,
        pixels: Pixels = "centred",
        split_seed: int = 42,
        loading: Loading = Loading(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__(loading)
        self.recipe, self.data, self.pixels, self.split_seed = recipe, data, pixels, split_seed
        self.encoding = ENCODINGS[pixels]
        self._empty_files: list[str] = []
        self._unlisted_images: list[str] = []

    def settings(self) -> dict[str, object]:
        """Where the images come from."""
        kind = {"resolution": self.recipe.resolution, "difficulty": self.recipe.difficulty}
        source = (
            {"generated": asdict(self.recipe)} if self.data is None else {"data": str(self.data.absolute()), **kind}
        )
        return {**source, "split_seed": self.split_seed}

    def fingerprint(self) -> str:
        """The state of the data set's files."""
        return "" if self.data is None else data_set_state(self._folder(self.data))

    def count(self) -> int | None:
        """The number of images that are made; that of a folder's is not known before it is read."""
        return self.recipe.images if self.data is None else None

    def examples(self) -> Iterator[Example]:
        """Images, made or read, row by row of pixels."""
        if self.data is None:
            parts = split(self.recipe.images, self.split_seed)
            images = (pair for made in made_images(self.recipe) for pair in zip(made.pixels, made.labels, strict=True))
            for part, (pixels, label) in zip(parts, images, strict=True):
                yield Example(PARTS[part], [pixels.reshape(-1)], int(label))
            return
        folder = self._folder(self.data)
        entries = read_entries(folder)
        self._empty_files, self._unlisted_images = [], unlisted_images(folder, entries)
        found = read_images(folder, entries, self.recipe.resolution)
        for part, image in zip(split(len(entries), self.split_seed), found, strict=True):
            if image.pixels is None:
                self._empty_files.append(str(image.path.relative_to(folder)))
            else:
                yield Example(PARTS[part], [image.pixels.reshape(-1)], image.label)

    def record(self) -> dict[str, object]:
        """What the examples depend on, what is in each part, and which images were left out: empty, or not listed."""
        header = self._ready().header
        return {**super().record(), "empty_files": header["empty_files"], "unlisted_images": header["unlisted_images"]}

    def _folder(self, data: Path) -> Path:
        return find_data_set(data, self.recipe.resolution, self.recipe.difficulty)

    def _write(self, folder: Path) -> Header:
        header = super()._write(folder)
        left_out = {"empty_files": self._empty_files, "unlisted_images": self._unlisted_images}
        return {**header, **{name: {"count": len(paths), "first": paths[:8]} for name, paths in left_out.items()}}


def split(n: int, seed: int) -> Int64[ndarray, " n"]:
    """The number of the part of each example, in a random order that the seed decides; at least ten are needed."""
    held_out = int(HELD_OUT * n)
    if held_out < 1:
        raise InputError(f"{n} images are too few to be split 80 to 10 to 10; 10 at least are needed")
    parts = np.zeros(n, np.int64)
    order = np.argsort(uniform(keys_of(seed, np.arange(n)), 0), kind="stable")
    parts[order[-2 * held_out : -held_out]] = 1
    parts[order[-held_out:]] = 2
    return parts
