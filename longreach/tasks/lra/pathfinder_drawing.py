"""The shapes of Pathfinder: where a dash may lead, what it looks like, and how much room it takes.

Every shape is drawn at twice the resolution and shrunk with a Lanczos filter to 8 bits, as published.  There are few
different ones: a contour starts in a direction of whole degrees and goes on to one of the pixels of a small circle.
So each is drawn once and then stamped, see `longreach.tasks.lra.pathfinder_canvas`.

Points are (y, x); an orientation `o` points along (sin o, cos o).  Sums are rounded to 12 digits before they become
pixels, so that the last bit of a machine's sine decides nothing.
"""

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

ANTIALIAS = 2
LANCZOS_REACH = 3
SEED_ORIENTATIONS = np.arange(-180, 180) * np.pi / 180


def displacement(orientation: float, distance: int) -> tuple[int, int]:
    """The way along an orientation, in whole pixels, rounded up."""
    return math.ceil(round(distance * math.sin(orientation), 12)), math.ceil(
        round(distance * math.cos(orientation), 12)
    )


def reverse(orientation: float) -> float:
    """The opposite orientation."""
    return orientation + math.pi if orientation < 0 else orientation - math.pi


def circle(radius: int) -> Int64[ndarray, "n 2"]:
    """The pixels on a circle, relative to its centre, in the order of (y, x)."""
    angles = np.arange(0, 360, 360 / (2 * radius * math.pi)) * np.pi / 180
    points = {
        (math.floor(round(radius * math.sin(a), 12)), math.floor(round(radius * math.cos(a), 12))) for a in angles
    }
    return np.array(sorted(points), np.int64)


def orientations(points: Int64[ndarray, "n 2"]) -> Float64[ndarray, " n"]:
    """The orientation of each point, as seen from the origin."""
    return np.array([math.atan2(y, x) for y, x in points.tolist()])


def alignment(
    current: Float64[ndarray, "*n"], following: Float64[ndarray, "*m"], continuity: float
) -> Float64[ndarray, "..."]:
    """How likely a contour is to turn from one orientation to another, where nothing is in its way, not normalised."""
    turn = np.abs(following - current)
    turn = np.minimum(turn, 2 * np.pi - turn)
    return np.cos(np.minimum(continuity * turn, np.pi / 2)) ** 2


def disc(radius: int) -> Bool[ndarray, "n n"]:
    """A filled circle."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def dilate(image: Num[ndarray, "*b h w"], shape: Bool[ndarray, "n n"]) -> Num[ndarray, "*b h w"]:
    """The maximum under a shape centred on each pixel; what is outside of the image does not count."""
    reach = len(shape) // 2
    height, width = image.shape[-2:]
    padded = np.pad(image, [(0, 0)] * (image.ndim - 2) + [(reach, reach)] * 2)
    result = np.zeros_like(image)
    for y, x in np.argwhere(shape):
        np.maximum(result, padded[..., y : y + height, x : x + width], out=result)
    return result


@lru_cache(maxsize=4096)
def line(
    orientation: float, length: int, thickness: float, margin: int
) -> tuple[UInt8[ndarray, "n n"], UInt8[ndarray, "n n"]]:
    """A dash that starts in the middle of a square, and the room that it takes: the dash with a margin around it."""
    reach = length + math.ceil(thickness) + margin
    centre = reach * ANTIALIAS
    dy, dx = displacement(orientation, length * ANTIALIAS)
    fine = Image.new("L", (2 * centre + 1, 2 * centre + 1))
    ends = [(centre, centre), (centre + dx, centre + dy)]
    ImageDraw.Draw(fine).line(ends, fill=255, width=round(thickness * ANTIALIAS))
    room = dilate(np.array(fine), disc(margin * ANTIALIAS))
    return _shrink(np.array(fine), (2 * reach + 1, 2 * reach + 1)), _shrink(room, (2 * reach + 1, 2 * reach + 1))


@lru_cache(maxsize=4096)
def marker(radius: float, above: int, below: int, left: int, right: int) -> UInt8[ndarray, "height width"]:
    """A disc in a window that has so many pixels on each side of its centre (the centre counts as below and right)."""
    y, x = np.ogrid[-above * ANTIALIAS : below * ANTIALIAS, -left * ANTIALIAS : right * ANTIALIAS]
    fine = (x**2 + y**2 <= (radius * ANTIALIAS) ** 2).astype(np.uint8) * np.uint8(255)
    return _shrink(fine, (above + below, left + right))


def add_marker(image: UInt8[ndarray, "h w"], y: int, x: int, radius: float) -> None:
    """Put a disc into an image.  Near the edge of the image the filter that shrinks it has less to average."""
    reach = math.ceil(radius) + 2 * LANCZOS_REACH + 1  # so far away the disc has no influence
    height, width = image.shape
    above, below, left, right = min(y, reach), min(height - y, reach), min(x, reach), min(width - x, reach)
    window = image[y - above : y + below, x - left : x + right]
    np.maximum(window, marker(radius, above, below, left, right), out=window)


def _shrink(image: UInt8[ndarray, "h w"], size: tuple[int, int]) -> UInt8[ndarray, "h2 w2"]:
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))
