"""Grey from red, green and blue, as the pipelines of the Long Range Arena have it.

pillow        (19595 R + 38470 G + 7471 B + 32768) >> 16                what the S4 family's pipelines read
tensorflow    floor(255.5 / 255 (0.2989 R + 0.587 G + 0.114 B))         what the original reads
"""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

Grey = Literal["pillow", "tensorflow"]
Colour = Literal["grey", "rgb"]


def to_grey(pixels: UInt8[ndarray, "h w c"], method: Grey = "pillow") -> UInt8[ndarray, "h w 1"]:
    """One number a pixel; what is grey stays as it is."""
    if pixels.shape[2] == 1:
        return pixels
    if method == "pillow":
        return ((pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16).astype(np.uint8)[
            :, :, None
        ]
    weighed = (pixels.astype(np.float32) / np.float32(255)) @ np.array([0.2989, 0.587, 0.114], np.float32)
    return (weighed * np.float32(255.5)).astype(np.uint8)[:, :, None]


def in_colour(pixels: UInt8[ndarray, "h w c"], colour: Colour) -> UInt8[ndarray, "h w d"]:
    """Pixels with one number, or with three of which all are the same where there is no colour."""
    if colour == "grey":
        return to_grey(pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
