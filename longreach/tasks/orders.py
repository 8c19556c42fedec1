"""Random orders of n things and random splits of them: functions of a key, the same on every machine."""

import hashlib
from collections.abc import Mapping
from itertools import islice

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from longreach.errors import InputError


def random_order(n: int, *key: object) -> Int64[ndarray, " n"]:
    """A random order of n things, the same with every version of NumPy: bit streams never change, methods may."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    draws = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(n)
    return np.argsort(draws, kind="stable")


def split(n: int, held_out: Mapping[str, float], *key: object) -> list[str]:
    """The part of each of n examples: `train`, but for the shares that are held out, as {part: share}.

    Raises InputError where a share is not between 0 and 1 or has no example.
    """
    parts, order = ["train"] * n, iter(random_order(n, *key).tolist())
    for part, share in held_out.items():
        if not 0 < share < 0.5:
            raise InputError(f"held_out = {share:g} must be more than 0 and less than 0.5")
        if not round(share * n):
            raise InputError(f"{n} examples are too few to hold out {share:g} of them as {part}; raise held_out")
        for row in islice(order, round(share * n)):
            parts[row] = part
    return parts
