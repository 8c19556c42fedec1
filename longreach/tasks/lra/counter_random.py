"""Random numbers that are a function of a key and a counter, so that no draw depends on what was drawn elsewhere.

    number(key, counter) = mix(key + (counter + 1) * GOLDEN)            SplitMix64, entered at any place

`mix` is the finaliser of SplitMix64 (https://doi.org/10.1145/2714064.2660195).  Every example of a generated data set
has a key made from the seed and its index: it is the same on every machine, in any order, by any number of processes.
"""

import numpy as np
from jaxtyping import Float64, Integer, UInt64
from numpy import ndarray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def stream(keys: UInt64[ndarray, "*n"], words: Integer[ndarray, "*m"] | int) -> UInt64[ndarray, "..."]:
    """Keys of independent streams, one for each key and word; the two broadcast."""
    return _mix(keys + _mix(np.array(words, np.uint64, ndmin=1) + GOLDEN))


def keys_of(seed: int, indexes: Integer[ndarray, " n"]) -> UInt64[ndarray, " n"]:
    """One key for each example of a data set; any integer is a seed."""
    return stream(stream(np.zeros(1, np.uint64), np.array([seed % 2**64], np.uint64)), indexes)


def uniform(keys: UInt64[ndarray, "*n"], counters: Integer[ndarray, "*m"] | int) -> Float64[ndarray, "..."]:
    """Numbers in [0, 1) with 53 bits; keys and counters broadcast."""
    bits = _mix(keys + (np.array(counters, np.uint64, ndmin=1) + np.uint64(1)) * GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(keys: UInt64[ndarray, "*n"], counters: Integer[ndarray, "*m"] | int, stop: int) -> Integer[ndarray, "..."]:
    """Integers from 0 up to `stop`, which is small: equally likely but for one part in 2**53 / stop."""
    return (uniform(keys, counters) * stop).astype(np.int64)


def _mix(bits: UInt64[ndarray, "*n"]) -> UInt64[ndarray, "*n"]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
