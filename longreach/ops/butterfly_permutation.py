"""Permutations that belong to butterfly matrices, and every permutation as a product of butterfly factors.

An order p gives y[i] = x[p[i]].  A block of decreasing and one of increasing strides hold every permutation of n = 2^m
entries: they are a Benes network, whose switches (identity or swap of two entries) are found by colouring cycles, once
for every stride (Dao et al. 2020, https://arxiv.org/abs/2012.14966, use this for sparse matrices).

Axes: n = 2^m entries, h = n / 2 switches of a factor.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longreach.errors import InputError


def levels_of(n: int, name: str) -> int:
    """log2 n; raises InputError in the name of the function `name` where n is no power of two."""
    if n < 1 or n & (n - 1):
        raise InputError(f"{name}: {n} is not a power of two; fill up with zeros")
    return n.bit_length() - 1


def bit_reversal(n: int) -> Int[Tensor, " {n}"]:
    """Entry i is i with its m bits in reverse; it is its own inverse."""
    levels = levels_of(n, "bit_reversal")
    return torch.arange(n).view((2,) * levels).permute(tuple(reversed(range(levels)))).flatten()


def wavelet_order(n: int) -> Int[Tensor, " {n}"]:
    """The coarse entries of a wavelet transform first: even places before odd ones, and so on among the even ones."""
    order = torch.arange(1)
    for _ in range(levels_of(n, "wavelet_order")):
        order = torch.cat([2 * order, torch.arange(1, 2 * len(order), 2)])
    return order


def permutation_twiddle(order: Int[Tensor, " n"]) -> Float[Tensor, "1 2 m h 2 2"]:
    """The permutation y = x[order] as two butterfly blocks, the first with decreasing strides; float64."""
    levels = levels_of(len(order), "permutation_twiddle")
    if levels == 0 or order.sort().values.tolist() != list(range(len(order))):
        raise InputError(f"permutation_twiddle: {order.tolist()} is not an order of two entries or more")
    before, after = _route(order.tolist())
    swapped = torch.tensor([before, [*reversed(after)]])[None, ..., None, None]
    identity = torch.eye(2, dtype=torch.float64)
    return torch.where(swapped, identity.flip(0), identity)


Switches = list[list[bool]]
"""For every stride from n / 2 to 1, which of its switches swap."""


def _route(order: list[int]) -> tuple[Switches, Switches]:
    """The switches before and after the middle of the network; both lists run from the outside to the inside."""
    n, half = len(order), len(order) // 2
    if n == 2:
        return [[order[0] == 1]], [[False]]
    lower = _halves(order)
    inner = []
    for part in (False, True):
        chosen = (order[i] if lower[order[i]] == part else order[i + half] for i in range(half))
        inner.append(_route([entry % half for entry in chosen]))
    (before, after), (before_lower, after_lower) = inner
    swap_before, swap_after = lower[:half], [lower[order[i]] for i in range(half)]
    return (
        [swap_before, *(a + b for a, b in zip(before, before_lower, strict=True))],
        [swap_after, *(a + b for a, b in zip(after, after_lower, strict=True))],
    )


def _halves(order: list[int]) -> list[bool]:
    """Which entries pass the lower half of the network: one of every pair n / 2 apart, both before and after."""
    n, half = len(order), len(order) // 2
    place = [0] * n
    for i, entry in enumerate(order):
        place[entry] = i
    lower: list[bool | None] = [None] * n
    for start in range(half):
        entry = start
        while lower[entry] is None:
            other = (entry + half) % n
            lower[entry], lower[other] = False, True
            entry = order[(place[other] + half) % n]
    return [side is True for side in lower]
