"""Random numbers that are the same on every machine and in every version of numpy.

Numpy promises the stream of bits of its generators for ever, but not what its distributions make of them; so here are
the few distributions that the tasks need, made from the bits of Philox (Salmon et al. 2011,
https://doi.org/10.1145/2063384.2063405), whose key says what the numbers are for.

Axes: whatever is asked for.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Float64, Int64, UInt64
from numpy import ndarray


class Draws:
    """A stream of random numbers of its own for everything that is named differently.

    Args:
        purpose: what the numbers are for: name of a task, seed, number of a step.
    """

    def __init__(self, *purpose: str | int) -> None:
        digest = hashlib.sha256("\n".join(map(str, purpose)).encode()).digest()
        self._generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))

    def bits(self, *shape: int) -> UInt64[ndarray, "..."]:
        """64 random bits a number."""
        return self._generator.random_raw(math.prod(shape)).reshape(shape)

    def integers(self, stop: int, *shape: int) -> Int64[ndarray, "..."]:
        """Integers from 0 to below `stop`, which is at most 2^32, equally likely up to stop / 2^32."""
        return (((self.bits(*shape) >> 32) * np.uint64(stop)) >> 32).astype(np.int64)

    def uniform(self, *shape: int) -> Float64[ndarray, "..."]:
        """Numbers between 0 and 1, both excluded."""
        return ((self.bits(*shape) >> 12) + 0.5) * 2.0**-52

    def normal(self, *shape: int) -> Float64[ndarray, "..."]:
        """Independent normal numbers of variance 1 (Box & Muller 1958, https://doi.org/10.1214/aoms/1177706645)."""
        return np.sqrt(-2 * np.log(self.uniform(*shape))) * np.cos(2 * math.pi * self.uniform(*shape))

    def distinct(self, stop: int, rows: int, count: int) -> Int64[ndarray, "rows count"]:
        """In each row so many different integers from 0 to below `stop`, in random order."""
        return np.argsort(self.bits(rows, stop), axis=1, kind="stable")[:, :count]
