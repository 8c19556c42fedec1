"""Many canvases on which contours grow in lockstep, one dash at a time.

A canvas remembers two images of 8 bits: the room that dashes take, and the same dilated by the margin.  A contour goes
on from its pivot `p` in the orientation `o`:

    p' = p + (length + 2 margin) (sin o, cos o)
    end = a pixel of the circle around p' of radius length + margin, with probability in proportion to
          cos(continuity * turn)^2 (1 - dilated room)
    the dash from there backwards must not overlap what is taken: up to three ends are drawn

All of that is looked up in tables, so a dash costs a gather of a few dozen pixels and a scatter of as many.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64
from numpy import ndarray

from longreach.tasks.lra.counter_random import uniform
from longreach.tasks.lra.pathfinder_shapes import N_SEEDS, WEIGHT_UNIT, PathfinderShapes, Stencil

MAX_DRAWS = 3
LEAST_WEIGHT = 1e-4 * 255 * WEIGHT_UNIT


class Growth(NamedTuple):
    """Where contours went."""

    fits: Bool[ndarray, " n"]
    """Whether there was a way on; where there was none, the rest means nothing."""
    pivots: Int64[ndarray, " n"]
    orientations: Int64[ndarray, " n"]
    """Also the number of the dash's shape."""
    ends: Int64[ndarray, " n"]


class Canvases:
    """Several canvases of the same kind; places are relative to the first pixel of each."""

    def __init__(
        self, shapes: PathfinderShapes, room: UInt8[ndarray, "n canvas"], wide_room: UInt8[ndarray, "n canvas"]
    ) -> None:
        self.shapes, self.room, self.wide_room = shapes, room, wide_room
        self.size = room.shape[1]

    @classmethod
    def empty(cls, shapes: PathfinderShapes, n: int) -> "Canvases":
        """Canvases on which only the border is taken."""
        room, wide_room = shapes.empty()
        return cls(shapes, np.tile(room, (n, 1)), np.tile(wide_room, (n, 1)))

    def copy(self, rows: Int64[ndarray, " n"]) -> "Canvases":
        """Some of them, copied."""
        return Canvases(self.shapes, self.room[rows], self.wide_room[rows])

    def replace(self, rows: Int64[ndarray, " n"], others: "Canvases", theirs: Int64[ndarray, " n"]) -> None:
        """Put some of others in the place of some of these."""
        self.room[rows], self.wide_room[rows] = others.room[theirs], others.wide_room[theirs]

    def take(self, rows: Int64[ndarray, " n"], shape: Int64[ndarray, " n"], place: Int64[ndarray, " n"]) -> None:
        """Take the room of one dash on each of the canvases, which are different ones."""
        base = rows * self.size + place
        stamp(self.room, self.shapes.rooms, shape, base)
        stamp(self.wide_room, self.shapes.wide_rooms, shape, base)

    def grow(
        self,
        rows: Int64[ndarray, " n"],
        pivots: Int64[ndarray, " n"],
        orientations: Int64[ndarray, " n"],
        keys: UInt64[ndarray, " n"],
        counters: Int64[ndarray, " n"],
    ) -> Growth:
        """Look for the next dash of one contour on each of the canvases; uses MAX_DRAWS random numbers."""
        shapes = self.shapes
        pivots = pivots + shapes.advance[orientations]
        base = rows * self.size + pivots
        cumulative = shapes.weights[orientations]
        cumulative *= 255 - self.wide_room.reshape(-1)[base[:, None] + shapes.circle]
        np.cumsum(cumulative, axis=1, out=cumulative)
        way, fits = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
        pending = np.flatnonzero(cumulative[:, -1] >= LEAST_WEIGHT)
        for draw in range(MAX_DRAWS):
            ladder = cumulative[pending]
            level = uniform(keys[pending], counters[pending] + draw) * ladder[:, -1]
            way[pending] = np.minimum((ladder <= level[:, None]).sum(axis=1), ladder.shape[1] - 1)
            fits[pending] = free = self._is_free(base[pending], way[pending])
            pending = pending[~free]
        return Growth(fits, pivots, N_SEEDS + way, pivots + shapes.circle[way])

    def _is_free(self, pivots: Int64[ndarray, " n"], way: Int64[ndarray, " n"]) -> Bool[ndarray, " n"]:
        pixels = (pivots + self.shapes.circle[way])[:, None] + self.shapes.core[way]
        return np.all(self.room.reshape(-1)[pixels] <= self.shapes.core_limit[way], axis=1)


def stamp(
    images: UInt8[ndarray, "n canvas"], stencil: Stencil, shape: Int64[ndarray, " m"], places: Int64[ndarray, " m"]
) -> None:
    """Put shapes onto images, at places among the pixels of all of them, where they are brighter than what is there."""
    pixels, flat = places[:, None] + stencil.offsets[shape], images.reshape(-1)
    flat[pixels] = np.maximum(flat[pixels], stencil.levels[shape])
