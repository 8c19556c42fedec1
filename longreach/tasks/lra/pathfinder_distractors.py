"""Short contours that lead astray, put wherever there is room for them, as the published generator does.

Each of them is tried up to five times: a first dash in a random orientation is planted at a random free place (up to
three times, if it would leave the image), then it grows like any contour.  What does not fit is left out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64
from numpy import ndarray

from longreach.tasks.lra.counter_random import below, stream, uniform
from longreach.tasks.lra.pathfinder_canvas import MAX_DRAWS, Canvases
from longreach.tasks.lra.pathfinder_shapes import N_SEEDS, TAKEN, PathfinderShapes

TRIES = 5
PLANTINGS = 3
GUESSES = 32
"""Places that are looked at before all of them are."""
DRAWS = GUESSES + 2
"""Random numbers for a planting: the orientation, the guesses, and one for the choice among all places."""


class Distractors(NamedTuple):
    """Distractors of `n` images; those that did not fit have length 0."""

    shapes: Int64[ndarray, "n distractor dash"]
    places: Int64[ndarray, "n distractor dash"]
    fits: Bool[ndarray, "n distractor"]


class _Dashes(NamedTuple):
    fits: Bool[ndarray, " n"]
    shapes: Int64[ndarray, "n dash"]
    places: Int64[ndarray, "n dash"]


def grow_distractors(canvases: Canvases, keys: UInt64[ndarray, " n"]) -> Distractors:
    """Add distractors to images with these keys; the canvases are changed."""
    settings = canvases.shapes.settings
    size = (len(keys), settings.n_distractors)
    shape, place = np.zeros((2, *size, settings.distractor_length), np.int64)
    found = Distractors(shape, place, np.zeros(size, bool))
    for number in range(settings.n_distractors):
        pending = np.arange(len(keys))
        for attempt in range(TRIES):
            if len(pending) == 0:
                break
            trial = canvases.copy(pending)
            fits, shapes, places = _grow_one(trial, stream(keys[pending], number * TRIES + attempt))
            rows, good = pending[fits], np.flatnonzero(fits)
            canvases.replace(rows, trial, good)
            found.shapes[rows, number], found.places[rows, number] = shapes[good], places[good]
            found.fits[rows, number] = True
            pending = pending[~fits]
    return found


def _grow_one(canvases: Canvases, keys: UInt64[ndarray, " n"]) -> _Dashes:
    """One distractor on each canvas, of which nothing is to be kept where it does not fit."""
    shapes, rows = canvases.shapes, np.arange(len(keys))
    n_dashes = shapes.settings.distractor_length
    shape, place = np.zeros((2, len(keys), n_dashes), np.int64)
    fits, shape[:, 0], place[:, 0] = _plant(canvases, keys)
    rows = rows[fits]
    pivots = place[:, 0] + shapes.pivots[shape[:, 0]]
    for step in range(1, n_dashes):
        counters = np.full(len(rows), PLANTINGS * DRAWS + MAX_DRAWS * step)
        growth = canvases.grow(rows, pivots[rows], shape[rows, step - 1], keys[rows], counters)
        fits[rows] = growth.fits
        rows = rows[growth.fits]
        canvases.take(rows, shape[rows, step - 1], place[rows, step - 1])
        shape[rows, step], place[rows, step] = growth.orientations[growth.fits], growth.ends[growth.fits]
        pivots[rows] = growth.pivots[growth.fits]
    canvases.take(rows, shape[rows, -1], place[rows, -1])
    return _Dashes(fits, shape, place)


def _plant(
    canvases: Canvases, keys: UInt64[ndarray, " n"]
) -> tuple[Bool[ndarray, " n"], Int64[ndarray, " n"], Int64[ndarray, " n"]]:
    """First dashes: whether there is room, their shapes, their places."""
    shapes = canvases.shapes
    fits, (orientation, place) = np.zeros(len(keys), bool), np.zeros((2, len(keys)), np.int64)
    pending = np.arange(len(keys))
    for planting in range(PLANTINGS):
        counter = planting * DRAWS
        orientation[pending] = below(keys[pending], counter, N_SEEDS)
        free, place[pending] = _free_place(canvases, pending, orientation[pending], keys[pending], counter + 1)
        pending = pending[free]
        head, pivot = (table[orientation[pending]] + place[pending] for table in (shapes.heads, shapes.pivots))
        within = _within(shapes, head) & _within(shapes, pivot)
        fits[pending[within]] = True
        pending = pending[~within]
    return fits, orientation, place


def _free_place(
    canvases: Canvases,
    rows: Int64[ndarray, " n"],
    orientation: Int64[ndarray, " n"],
    keys: UInt64[ndarray, " n"],
    counter: int,
) -> tuple[Bool[ndarray, " n"], Int64[ndarray, " n"]]:
    """A place where a dash has room, each of them equally likely: the first free one of some guesses, or of all."""
    shapes, side = canvases.shapes, canvases.shapes.settings.resolution
    guess = below(keys[:, None], counter + np.arange(GUESSES), side * side)
    y, x = np.divmod(guess, side)
    place = (y + shapes.edge) * shapes.side + x + shapes.edge
    taken = canvases.room.reshape(-1) >= TAKEN
    pixels = (rows * canvases.size)[:, None, None] + place[:, :, None] + shapes.probes[orientation][:, None, :]
    free = ~np.any(taken[pixels], axis=2) & shapes.plantable[orientation][:, None]
    found = np.any(free, axis=1)
    chosen = place[np.arange(len(rows)), free.argmax(axis=1)]
    unknown = np.flatnonzero(~found & shapes.plantable[orientation])
    if len(unknown):
        everywhere = shapes.places(np.argwhere(np.ones((side, side))) + shapes.edge)
        for i in unknown:
            pixels = rows[i] * canvases.size + everywhere[:, None] + shapes.probes[orientation[i]]
            places = everywhere[~taken[pixels].any(axis=1)]
            found[i] = len(places) > 0
            if found[i]:
                chosen[i] = places[int(uniform(keys[i : i + 1], counter + GUESSES)[0] * len(places))]
    return found, chosen


def _within(shapes: PathfinderShapes, place: Int64[ndarray, " n"]) -> Bool[ndarray, " n"]:
    y, x = np.divmod(place, shapes.side)
    low, high = shapes.edge, shapes.edge + shapes.settings.resolution
    return (y >= low) & (y < high) & (x >= low) & (x < high)
