"""Every shape that images of one kind can contain, as pixels to stamp, and every way on, as tables.

Orientations are numbered: 0..359 are those of first dashes (whole degrees from -180), then come those of the pixels of
the circle on which a contour goes on.  A dash that leads to such a pixel is drawn from it backwards.
A canvas is an image with a wide edge, all rows in one; a place on it is an index, a displacement a difference of them.
"""

import math
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from numpy import ndarray

from longreach.tasks.lra.pathfinder_drawing import (
    SEED_ORIENTATIONS,
    alignment,
    circle,
    dilate,
    disc,
    displacement,
    line,
    orientations,
    reverse,
)
from longreach.tasks.lra.pathfinder_settings import PathfinderSettings

N_SEEDS = len(SEED_ORIENTATIONS)
WEIGHT_UNIT = 2.0**32
"""Weights are whole multiples of 1 / WEIGHT_UNIT (and of 1/255), so that their sums are exact in any order."""
TAKEN = 77
"""The level of room (of 255) from which a place is taken: ceil(level - 0.3) = 1."""
COLLISION = 459
"""Two rooms collide where their levels sum up to this: 1.8 of 255."""


class Stencil(NamedTuple):
    """The pixels of several shapes, all equally many: the shorter ones repeat a pixel."""

    offsets: Int64[ndarray, "shape pixel"]
    levels: UInt8[ndarray, "shape pixel"]


def stencil(patches: UInt8[ndarray, "shape n n"], side: int, at_least: int = 1, shift: int = 0) -> Stencil:
    """Pixels of square patches that have at least some level, relative to the middle, on a canvas `side` wide."""
    reach = patches.shape[-1] // 2
    found = [np.argwhere(patch >= at_least) for patch in patches]
    width = max(len(points) for points in found)
    offsets, levels = np.zeros((2, len(patches), width), np.int64)
    for i, (patch, points) in enumerate(zip(patches, found, strict=True)):
        repeated = np.resize(points, (width, 2))
        offsets[i] = (repeated - reach + shift) @ [side, 1]
        levels[i] = patch[repeated[:, 0], repeated[:, 1]]
    return Stencil(offsets, levels.astype(np.uint8))


class PathfinderShapes:
    """The tables for one of the margins of the settings."""

    def __init__(self, settings: PathfinderSettings, margin: int) -> None:
        length, thickness = settings.segment_length, settings.thickness
        self.settings, self.margin = settings, margin
        self.edge = 2 * length + math.ceil(thickness) + 3 * margin + 3  # no dash that is looked at leaves the canvas
        self.side = settings.resolution + 2 * self.edge
        ways = circle(length + margin)
        onward = orientations(ways)
        self.orientations: Float64[ndarray, " o"] = np.concatenate([SEED_ORIENTATIONS, onward])
        self.circle: Int64[ndarray, " way"] = self.places(ways)
        weights = alignment(self.orientations[:, None], onward, settings.continuity)
        self.weights: Float64[ndarray, "o way"] = np.rint(weights * WEIGHT_UNIT)
        self.advance = self._displacements(self.orientations, length + 2 * margin)
        drawn = [*SEED_ORIENTATIONS.tolist(), *map(reverse, onward.tolist())]
        patches = [line(orientation, length, thickness, margin) for orientation in drawn]
        lines, rooms = (np.stack(kind) for kind in zip(*patches, strict=True))
        self.lines = stencil(lines, self.side)
        self.rooms = stencil(rooms, self.side, at_least=TAKEN)  # nobody asks for lower levels
        self.wide_rooms = stencil(dilate(np.pad(rooms, [(0, 0)] + [(margin, margin)] * 2), disc(margin)), self.side)
        core = stencil(rooms[N_SEEDS:], self.side, at_least=COLLISION - 255)
        self.core, self.core_limit = core.offsets, (COLLISION - 1 - core.levels.astype(np.int64)).astype(np.uint8)
        self.probes, self.plantable = self._probes(rooms[:N_SEEDS])
        self.heads = self._displacements(SEED_ORIENTATIONS, length)
        backwards = np.array([reverse(orientation) for orientation in SEED_ORIENTATIONS.tolist()])
        self.pivots = self.heads + self._displacements(backwards, length + margin)

    def places(self, points: Int64[ndarray, "n 2"]) -> Int64[ndarray, " n"]:
        """Points as displacements on the canvas."""
        return points @ np.array([self.side, 1])

    def inside(self, image: UInt8[ndarray, "*b canvas"]) -> UInt8[ndarray, "*b h w"]:
        """The image on a canvas."""
        square = image.reshape(*image.shape[:-1], self.side, self.side)
        return square[..., self.edge : -self.edge, self.edge : -self.edge]

    def empty(self) -> tuple[UInt8[ndarray, " canvas"], UInt8[ndarray, " canvas"]]:
        """The room that is taken at the start, by the border, and the same dilated, with everything outside."""
        side, border = self.settings.resolution, self.settings.padding
        room = np.full((side, side), 255, np.uint8)
        room[border:-border, border:-border] = 0
        outside = [(self.edge, self.edge)] * 2
        wide = dilate(room, disc(self.margin))
        return np.pad(room, outside).reshape(-1), np.pad(wide, outside, constant_values=255).reshape(-1)

    @cached_property
    def first_places(self) -> dict[int, Int64[ndarray, " n"]]:
        """For each orientation that can be planted, where a first contour may start: in the middle of the image."""
        side, frame = self.settings.resolution, 2 * self.settings.seed_distance
        taken = np.ones((self.side, self.side), bool)
        taken[self.edge + frame : self.edge + side - frame, self.edge + frame : self.edge + side - frame] = False
        window = self.settings.segment_length + self.margin
        near = np.arange(frame - window, side - frame + window) + self.edge
        places = self.places(np.stack(np.meshgrid(near, near, indexing="ij"), axis=-1).reshape(-1, 2))
        free = {
            seed: places[~taken.reshape(-1)[places[:, None] + self.probes[seed]].any(axis=1)]
            for seed in np.flatnonzero(self.plantable).tolist()
        }
        return {seed: found for seed, found in free.items() if len(found)}

    def _probes(self, rooms: UInt8[ndarray, "o n n"]) -> tuple[Int64[ndarray, "o pixel"], Bool[ndarray, " o"]]:
        """Where it must be free for a seed to be planted: its room, displaced by one, as far as the window reaches.

        Published quirk: an orientation is given up unless at every pixel of the image, so at its corners, some of that
        lies within the image (a dilation is minus infinity elsewhere, and whoever looks for places stops there).
        """
        reach, window = rooms.shape[-1] // 2, self.settings.segment_length + self.margin
        cut = rooms[:, reach - window - 1 : reach + window, reach - window - 1 : reach + window]
        quadrants = [slice(None, window + 1), slice(window, None)]
        corners = [(cut[:, rows, columns] == 255).any(axis=(1, 2)) for rows in quadrants for columns in quadrants]
        return stencil(cut, self.side, at_least=255).offsets, np.all(corners, axis=0)

    def _displacements(self, orientation: Float64[ndarray, " o"], distance: int) -> Int64[ndarray, " o"]:
        return self.places(np.array([displacement(o, distance) for o in orientation.tolist()], np.int64))


@lru_cache(maxsize=32)
def pathfinder_shapes(settings: PathfinderSettings, margin: int) -> PathfinderShapes:
    """The tables, made once in a process: about a second and up to a few dozen megabytes."""
    return PathfinderShapes(settings, margin)
