"""Pathfinder images: do the two discs mark the ends of one contour, or ends of two?

https://arxiv.org/abs/1805.08315, as used in the Long Range Arena (https://arxiv.org/abs/2011.04006).  An image has two
long contours of dashes (`pathfinder_targets`), short ones that lead astray (`pathfinder_distractors`), and a disc at
the start of one of the long ones and at the end of the same (label 1) or of the other one (label 0).
Image `i` of a seed is a function of the two and of the settings, whatever else is made with it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8, UInt64
from numpy import ndarray

from longreach.tasks.lra.counter_random import below, keys_of, stream
from longreach.tasks.lra.pathfinder_canvas import stamp
from longreach.tasks.lra.pathfinder_distractors import grow_distractors
from longreach.tasks.lra.pathfinder_drawing import add_marker
from longreach.tasks.lra.pathfinder_settings import PathfinderSettings
from longreach.tasks.lra.pathfinder_shapes import PathfinderShapes, pathfinder_shapes
from longreach.tasks.lra.pathfinder_targets import grow_targets

LABEL, MARGIN, ORIGIN = range(3)
"""Counters of the random numbers that belong to an image as a whole."""
TARGETS, DISTRACTORS = range(2)
"""Words of the streams of its parts."""

PIXELS_AT_A_TIME = 4 << 20


class PathfinderImages(NamedTuple):
    """Images with what is known about them; points are (y, x)."""

    pixels: UInt8[ndarray, "n h w"]
    labels: Int64[ndarray, " n"]
    margins: Int64[ndarray, " n"]
    markers: Int64[ndarray, "n 2 2"]
    """The two discs."""
    dashes: Int64[ndarray, "n 2 dash 2"]
    """Where the dashes of the two contours start: for the first dash its outer end, then the inner ends."""
    n_distractors: Int64[ndarray, " n"]
    """How many distractors found a place."""
    attempts: Int64[ndarray, " n"]
    """How many attempts at the two contours failed."""


def make_images(settings: PathfinderSettings, seed: int, indexes: Integer[ndarray, " n"]) -> PathfinderImages:
    """The images with these indexes, of which there is at least one."""
    keys = keys_of(seed, indexes)
    choice = below(keys, MARGIN, len(settings.margins))
    group = max(1, PIXELS_AT_A_TIME // settings.resolution**2)
    rows, made = [], []
    for number, margin in enumerate(settings.margins):
        alike = np.flatnonzero(choice == number)
        for first in range(0, len(alike), group):
            rows.append(alike[first : first + group])
            made.append(_make(pathfinder_shapes(settings, margin), keys[rows[-1]]))
    order = np.argsort(np.concatenate(rows))
    return PathfinderImages(*(np.concatenate(field)[order] for field in zip(*made, strict=True)))


def _make(shapes: PathfinderShapes, keys: UInt64[ndarray, " n"]) -> PathfinderImages:
    """Images of one margin."""
    settings, n = shapes.settings, len(keys)
    targets = grow_targets(shapes, stream(keys, TARGETS))
    distractors = grow_distractors(targets.canvases, stream(keys, DISTRACTORS))
    bright, brighter = np.zeros((2, n, shapes.side**2), np.uint8)
    bases = np.arange(n) * shapes.side**2
    for shape, place in zip(targets.shapes.T, targets.places.T, strict=True):
        stamp(bright, shapes.lines, shape, bases + place)
    for number in range(settings.n_distractors):
        rows = np.flatnonzero(distractors.fits[:, number])
        for dash in range(settings.distractor_length):
            shape, place = distractors.shapes[rows, number, dash], distractors.places[rows, number, dash]
            stamp(brighter, shapes.lines, shape, bases[rows] + place)
    points = np.stack(np.divmod(targets.places, shapes.side), axis=-1) - shapes.edge
    dashes = points.reshape(n, -1, 2, 2).swapaxes(1, 2)
    labels, origin = below(keys, LABEL, 2), below(keys, ORIGIN, 2)
    every = np.arange(n)
    markers = np.stack([dashes[every, origin, 0], dashes[every, np.where(labels == 1, origin, 1 - origin), -1]], axis=1)
    discs = np.zeros((n, settings.resolution, settings.resolution), np.uint8)
    for image, ends in zip(discs, markers.tolist(), strict=True):
        for y, x in ends:
            add_marker(image, y, x, settings.marker_radius)
    contours = np.maximum(
        shapes.inside(bright) * settings.target_contrast, shapes.inside(brighter) * settings.distractor_contrast
    )
    margins = np.full(n, shapes.margin)
    n_distractors = distractors.fits.sum(axis=1)
    pixels = _stretch(np.maximum(contours, discs))
    return PathfinderImages(pixels, labels, margins, markers, dashes, n_distractors, targets.attempts)


def _stretch(images: Float64[ndarray, "n h w"]) -> UInt8[ndarray, "n h w"]:
    """Bring each image's darkest pixel to 0 and its brightest to 255."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    return ((images - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
