"""An image as a sequence: of its pixels, or of square patches, row by row from the upper left.

    position = (pixels of a patch - 127.5) / (127.5 sqrt(patch))         in [-1, 1] / sqrt(patch)

Patches as in Gato (Reed et al. 2022, https://arxiv.org/abs/2205.06175), where they are 16 x 16: an image of any size
is a sequence of h w / patch^2 positions.  Where whole patches need more than there is at the right and at the bottom,
the edge is repeated.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from longreach.errors import InputError
from longreach.tasks.encodings import FeatureEncoding
from longreach.tasks.images.colours import Colour, in_colour
from longreach.tasks.orders import random_order


@dataclass(frozen=True)
class ImageSequence:
    """How an image becomes a sequence.

    Args:
        colour: One number for a pixel (`grey`) or three (`rgb`).
        patch: Side of a patch; 1 for single pixels.
        coordinates: Two more features tell the row and the column of a patch, as shares of the image's height and
            width; otherwise images of different widths look alike to a model.
        permutation: A seed: put the positions of every image into one random order, as in permuted sequential MNIST;
            all images need one size then.
    """

    colour: Colour = "grey"
    patch: int = 1
    coordinates: bool = False
    permutation: int | None = None

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise InputError(f"sequence.patch = {self.patch} must be at least 1")

    @property
    def encoding(self) -> FeatureEncoding:
        """What a position is."""
        size = self.patch**2 * (1 if self.colour == "grey" else 3) + 2 * self.coordinates
        return FeatureEncoding(size, mean=127.5, std=127.5 * math.sqrt(self.patch))

    def positions(self, pixels: UInt8[ndarray, "h w c"]) -> UInt8[ndarray, "l f"]:
        """The positions of an image, in their usual order."""
        coloured, patch = in_colour(pixels, self.colour), self.patch
        h, w, c = coloured.shape
        whole = np.pad(coloured, ((0, -h % patch), (0, -w % patch), (0, 0)), mode="edge")
        rows, columns = whole.shape[0] // patch, whole.shape[1] // patch
        patches = whole.reshape(rows, patch, columns, patch, c).swapaxes(1, 2).reshape(rows * columns, patch**2 * c)
        if not self.coordinates:
            return patches
        places = np.indices((rows, columns)).reshape(2, -1).T
        shares = (places + 0.5) / (rows, columns)
        return np.concatenate([patches, (255 * shares + 0.5).astype(np.uint8)], axis=1)

    def order(self, length: int) -> slice | ndarray:
        """The order in which a model reads the positions."""
        return slice(None) if self.permutation is None else random_order(length, self.permutation, "positions")
