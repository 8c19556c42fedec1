"""The two long contours of a Pathfinder image, by the law of the published generator: all or nothing.

Two dashes are planted, then both contours grow in turns; if one finds no way on, both are given up and start again from
new seeds, hundreds of times for an image.  Attempts at an image are numbered, each has random numbers of its own, and
the first that succeeds is the image.  So they can be made at once: each image in work has a row of lanes, a lane makes
one attempt, all lanes grow in lockstep, and the lanes of an image are taken back when no earlier attempt is left.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64
from numpy import ndarray

from longreach.tasks.lra.counter_random import below, stream, uniform
from longreach.tasks.lra.pathfinder_canvas import MAX_DRAWS, Canvases
from longreach.tasks.lra.pathfinder_shapes import N_SEEDS, PathfinderShapes

LANES = 32
"""Attempts at one image at a time."""
MEMORY = 8 << 20
"""Bytes of canvases that are worked on at a time, about."""
SEED_DRAWS = 4
"""Random numbers that the first two dashes use."""
NEVER = np.iinfo(np.int64).max


class Targets(NamedTuple):
    """Two contours in each of `n` images; dash `2 k + i` is the k-th of contour i."""

    shapes: Int64[ndarray, "n dash"]
    places: Int64[ndarray, "n dash"]
    """Where dashes are drawn from: their tails for the first two, then their heads."""
    attempts: Int64[ndarray, " n"]
    """How many attempts failed before."""
    canvases: Canvases


class _Lanes:
    """The state of all attempts under way, `(image in work, lane)` each."""

    def __init__(self, shapes: PathfinderShapes, n_images: int) -> None:
        n_slots = max(1, min(n_images, MEMORY // (2 * LANES * shapes.side**2)))
        size, dashes = (n_slots, LANES), 2 * shapes.settings.contour_length
        self.attempt = np.full(size, NEVER)
        self.keys = np.zeros(size, np.uint64).reshape(-1)
        self.step = np.zeros(size, np.int64).reshape(-1)
        self.pivots = np.zeros((n_slots * LANES, 2), np.int64)
        self.shapes, self.places = np.zeros((2, n_slots * LANES, dashes), np.int64)
        self.canvases = Canvases.empty(shapes, n_slots * LANES)
        self.image = np.full(n_slots, -1)
        self.next_attempt = np.zeros(n_slots, np.int64)
        self.found = np.full(n_slots, NEVER)


def grow_targets(shapes: PathfinderShapes, keys: UInt64[ndarray, " n"]) -> Targets:
    """The contours of the images with these keys."""
    dashes, n = 2 * shapes.settings.contour_length, len(keys)
    shape, place = np.zeros((2, n, dashes), np.int64)
    targets = Targets(shape, place, np.zeros(n, np.int64), Canvases.empty(shapes, n))
    lanes, seeds = _Lanes(shapes, n), _Seeds(shapes)
    waiting = 0
    while True:
        waiting = _assign(lanes, keys, waiting)
        _restart(lanes, seeds, keys)
        active = np.flatnonzero(lanes.attempt.reshape(-1) != NEVER)
        if len(active) == 0:
            return targets
        _grow(lanes, active, targets)


def _assign(lanes: _Lanes, keys: UInt64[ndarray, " n"], waiting: int) -> int:
    """Give new images to the slots whose image is complete; how many images have been given out."""
    complete = (lanes.attempt > lanes.found[:, None]).all(axis=1) | (lanes.image < 0)
    lanes.attempt[complete] = NEVER
    lanes.image[complete] = -1
    slots = np.flatnonzero(complete)[: len(keys) - waiting]
    lanes.image[slots] = waiting + np.arange(len(slots))
    lanes.next_attempt[slots], lanes.found[slots] = 0, NEVER
    return waiting + len(slots)


def _restart(lanes: _Lanes, seeds: "_Seeds", keys: UInt64[ndarray, " n"]) -> None:
    """Give the next attempts at its image to each idle lane, unless an attempt succeeded already."""
    idle = (lanes.attempt == NEVER) & (lanes.found == NEVER)[:, None] & (lanes.image >= 0)[:, None]
    attempt = lanes.next_attempt[:, None] + np.cumsum(idle, axis=1) - 1
    lanes.next_attempt += idle.sum(axis=1)
    lanes.attempt[idle] = attempt[idle]
    fresh = np.flatnonzero(idle)
    if len(fresh) == 0:
        return
    lanes.keys[fresh] = stream(keys[lanes.image[fresh // LANES]], attempt[idle])
    lanes.step[fresh] = 2
    lanes.canvases.replace(fresh, seeds.empty, np.zeros_like(fresh))
    lanes.shapes[fresh, :2], lanes.places[fresh, :2] = seeds.plant(lanes.keys[fresh])
    lanes.pivots[fresh] = lanes.places[fresh, :2] + seeds.shapes.pivots[lanes.shapes[fresh, :2]]


def _grow(lanes: _Lanes, active: Int64[ndarray, " m"], targets: Targets) -> None:
    """Add a dash in every lane; lanes that cannot, and those that are done, become idle."""
    step = lanes.step[active]
    contour, before = step % 2, step - 2
    counters = SEED_DRAWS + MAX_DRAWS * before
    growth = lanes.canvases.grow(
        active, lanes.pivots[active, contour], lanes.shapes[active, before], lanes.keys[active], counters
    )
    attempts = lanes.attempt.reshape(-1)
    attempts[active[~growth.fits]] = NEVER
    kept, on = active[growth.fits], step[growth.fits]
    lanes.canvases.take(kept, lanes.shapes[kept, on - 2], lanes.places[kept, on - 2])
    lanes.shapes[kept, on] = growth.orientations[growth.fits]
    lanes.places[kept, on] = growth.ends[growth.fits]
    lanes.pivots[kept, on % 2] = growth.pivots[growth.fits]
    lanes.step[kept] = on + 1
    done = kept[on + 1 == lanes.shapes.shape[1]]
    # only the second contour's last dash takes room, as published
    lanes.canvases.take(done, lanes.shapes[done, -1], lanes.places[done, -1])
    for lane in done:
        slot = lane // LANES
        if attempts[lane] < lanes.found[slot]:
            lanes.found[slot] = attempts[lane]
            image = lanes.image[slot]
            targets.shapes[image], targets.places[image] = lanes.shapes[lane], lanes.places[lane]
            targets.attempts[image] = attempts[lane]
            targets.canvases.replace(image[None], lanes.canvases, lane[None])
    attempts[done] = NEVER


class _Seeds:
    """The first two dashes: one in the middle of the image, one at a certain distance from it; they may overlap."""

    def __init__(self, shapes: PathfinderShapes) -> None:
        self.shapes = shapes
        self.empty = Canvases.empty(shapes, 1)
        places = shapes.first_places
        self._orientations = np.array(list(places))
        self._counts = np.array([len(found) for found in places.values()])
        self._places = np.zeros((len(places), self._counts.max()), np.int64)
        for row, found in zip(self._places, places.values(), strict=True):
            row[: len(found)] = found
        angles = np.arange(360) * np.pi / 180
        distance = shapes.settings.seed_distance
        self._away = np.round(distance * np.stack([np.sin(angles), np.cos(angles)], axis=1), 12)

    def plant(self, keys: UInt64[ndarray, " n"]) -> tuple[Int64[ndarray, "n 2"], Int64[ndarray, "n 2"]]:
        """Shapes and places of the two dashes."""
        shapes = self.shapes
        first = below(keys, 0, len(self._orientations))
        tail = self._places[first, (uniform(keys, 1) * self._counts[first]).astype(np.int64)]
        points = (
            np.stack(np.divmod(tail, shapes.side), axis=1) - shapes.edge
        )  # halves are rounded to even ones of these
        other = np.rint(points + self._away[below(keys, 3, len(self._away))]).astype(np.int64)
        return (
            np.stack([self._orientations[first], below(keys, 2, N_SEEDS)], axis=1),
            np.stack([tail, shapes.places(other + shapes.edge)], axis=1),
        )
