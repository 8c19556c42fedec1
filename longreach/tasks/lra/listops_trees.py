"""The trees of ListOps: nested operations on lists of digits (Nangia & Bowman 2018, https://arxiv.org/abs/1804.06028).

Drawn as the Long Range Arena draws them (Tay et al. 2020, https://arxiv.org/abs/2011.04006).  From depth 1,

    tree(depth) = a digit 0-9                                    with probability 3/4, and always at max_depth
                = op tree(depth + 1) x n                         n uniform from 2 to max_args, op one of four
    length      = 1                                              of a digit
                = 2 + lengths of the arguments                   the operation and the closing bracket
    value       = the digit; the least, the greatest, the median (of an even number the mean of the two in the middle,
                  rounded down), or the sum modulo 10 of the arguments

and a tree is kept if min_length < length < max_length and it is not there yet.  With the usual limits 8% are.

Here many trees grow together, level by level.  A node needs one 64-bit number: its upper half says whether it branches,
its lower half which digit it is, or which operation of how many arguments.  Trees that have become too long stop
growing.  The numbers are the raw bits of PCG64, which no version of NumPy changes, so a seed means the same bytes
everywhere.

Axes: t trees, n nodes of a level, c children of all of them, k symbols.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from numpy import ndarray

from longreach.errors import InputError

OPERATIONS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = (*"0123456789", "]", *OPERATIONS)
"""What a number of a tree stands for."""
CLOSE, FIRST_OPERATION = 10, 11

ROOTS = 1 << 13
"""So many trees grow together.  Another number would mean other trees."""
BRANCHING = 1 << 30
"""A node branches if the upper half of its number is less than this: one in four."""
PATIENCE = 100
"""So many groups of ROOTS may bring nothing new before the limits are taken for impossible."""


@dataclass(frozen=True)
class TreeLimits:
    """Which trees there are.

    Args:
        min_length: Trees have more symbols than this.
        max_length: Trees have fewer symbols than this.
        max_depth: Depth of the tree; the root is at 1, and what is this deep is a digit.
        max_args: Most arguments of an operation.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_args: int = 10

    def __post_init__(self) -> None:
        if self.max_length < self.min_length + 2:
            raise InputError(
                f"no length is between min_length = {self.min_length} and max_length = {self.max_length}, both excluded"
            )
        if not 2 <= self.max_args <= 100 or self.max_depth < 1:
            raise InputError(f"max_args = {self.max_args} must be from 2 to 100, max_depth = {self.max_depth} from 1")


class Tree(NamedTuple):
    """One expression."""

    symbols: UInt8[ndarray, " k"]
    """Indexes of SYMBOLS, in the order of writing."""
    value: int


class _Level(NamedTuple):
    """All nodes of one depth, children of one parent side by side, in the order of their parents."""

    root: Integer[ndarray, " n"]
    """The tree of every node."""
    symbol: UInt8[ndarray, " n"]
    n_children: Integer[ndarray, " n"]
    """0 where there is a digit."""

    def select(self, nodes: Bool[ndarray, " n"]) -> "_Level":
        return _Level(self.root[nodes], self.symbol[nodes], self.n_children[nodes])


def trees(seed: int, limits: TreeLimits) -> Iterator[Tree]:
    """Different trees without end; raises InputError if the limits allow no more of them."""
    seen: set[bytes] = set()
    group = last = 0
    while group - last < PATIENCE:
        for tree in _grow(seed, group, limits):
            digest = hashlib.blake2b(tree.symbols.tobytes(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                last = group
                yield tree
        group += 1
    raise InputError(
        f"there seem to be only {len(seen)} trees with {limits}; ask for fewer examples, or allow more lengths"
    )


def _grow(seed: int, group: int, limits: TreeLimits) -> Iterator[Tree]:
    """The trees of one group that are within the limits."""
    key = hashlib.sha256(f"listops {seed} {group}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(key[:16], "little"))
    levels, lengths = _draw(bits, limits)
    kept = (limits.min_length < lengths) & (lengths < limits.max_length)
    levels = [level.select(kept[level.root]) for level in levels]
    levels = [level for level in levels if len(level.root)]
    if not levels:
        return
    sizes, values = _bottom_up(levels)
    symbols, starts = _write(levels, sizes)
    for start, size, value in zip(starts.tolist(), sizes[0].tolist(), values.tolist(), strict=True):
        yield Tree(symbols[start : start + size], value)


def _draw(bits: np.random.PCG64, limits: TreeLimits) -> tuple[list[_Level], Integer[ndarray, " t"]]:
    """All levels of ROOTS trees, and the lengths of the trees; one that is too long is not drawn to its end."""
    levels: list[_Level] = []
    lengths = np.zeros(ROOTS, np.int64)
    root = np.arange(ROOTS)
    for depth in range(1, limits.max_depth + 1):
        draws = bits.random_raw(len(root))
        branches = (draws >> np.uint64(32) < BRANCHING) & (depth < limits.max_depth)
        low = draws & np.uint64(2**32 - 1)
        counts = limits.max_args - 1
        choice = (low * np.where(branches, np.uint64(len(OPERATIONS) * counts), np.uint64(10))) >> np.uint64(32)
        n_children = np.where(branches, 2 + choice % np.uint64(counts), 0).astype(np.int64)
        symbol = np.where(branches, FIRST_OPERATION + choice // np.uint64(counts), choice).astype(np.uint8)
        levels.append(_Level(root, symbol, n_children))
        lengths += np.bincount(root, 1 + branches, minlength=ROOTS).astype(np.int64)
        growing = lengths < limits.max_length
        root = np.repeat(root, np.where(growing[root], n_children, 0))
    return levels, lengths


def _bottom_up(levels: list[_Level]) -> tuple[list[Integer[ndarray, "_"]], Integer[ndarray, " t"]]:
    """The number of symbols below and with every node of every level, and the values of the roots."""
    sizes: list[ndarray] = []
    size = value = np.zeros(0, np.int64)
    for level in reversed(levels):
        inner = level.n_children > 0
        first = _exclusive_sum(level.n_children[inner])
        here, found = np.ones(len(inner), np.int64), level.symbol.astype(np.int64)
        if len(first):
            here[inner] = 2 + np.add.reduceat(size, first)
            found[inner] = _apply(level.symbol[inner], value, first, level.n_children[inner])
        size, value = here, found
        sizes.insert(0, size)
    return sizes, value


def _apply(
    operation: UInt8[ndarray, " n"],
    arguments: Integer[ndarray, " c"],
    first: Integer[ndarray, " n"],
    count: Integer[ndarray, " n"],
) -> Integer[ndarray, " n"]:
    """The values of operations, each on `count` arguments from `first`."""
    median = np.flatnonzero(operation == FIRST_OPERATION + OPERATIONS.index("[MED"))
    place = np.arange(count.max())
    inside = place < count[median, None]
    table = np.where(inside, arguments[np.where(inside, first[median, None] + place, 0)], 10)
    table.sort(axis=1)
    row, middle = np.arange(len(median)), count[median]
    medians = np.zeros(len(first), np.int64)
    medians[median] = (table[row, (middle - 1) // 2] + table[row, middle // 2]) // 2
    results = {
        "[MIN": np.minimum.reduceat(arguments, first),
        "[MAX": np.maximum.reduceat(arguments, first),
        "[MED": medians,
        "[SM": np.add.reduceat(arguments, first) % 10,
    }
    return np.choose(operation - np.uint8(FIRST_OPERATION), [results[name] for name in OPERATIONS])


def _write(
    levels: list[_Level], sizes: list[Integer[ndarray, "_"]]
) -> tuple[UInt8[ndarray, " k"], Integer[ndarray, " t"]]:
    """All trees in one row of symbols, and where each begins."""
    symbols = np.full(int(sizes[0].sum()), CLOSE, np.uint8)
    start = starts = _exclusive_sum(sizes[0])
    for number, level in enumerate(levels):
        symbols[start] = level.symbol
        inner = level.n_children > 0
        if number + 1 < len(levels):
            before = _exclusive_sum(sizes[number + 1])  # symbols of all nodes to the left on the next level
            first, count = _exclusive_sum(level.n_children[inner]), level.n_children[inner]
            start = before + np.repeat(start[inner] + 1 - before[first], count)
    return symbols, starts


def _exclusive_sum(counts: Integer[ndarray, " n"]) -> Integer[ndarray, " n"]:
    """The sum of all counts before each."""
    return np.cumsum(counts) - counts
