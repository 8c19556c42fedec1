"""How the transforms of the long convolution are factored, and the tables of numbers that its kernels multiply by.

Axes: N1 and N2 factors of the rows that one program holds, L of an outer level.
"""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

WHOLE = 4096
"""The longest transform that one program does."""
LONGEST = 1 << 26
"""Samples that two outer levels reach."""
TILE = 4096
"""Samples of the rows that a program takes together where they are shorter, and of a block of an outer level."""


class Plan(NamedTuple):
    """How a transform is factored."""

    outer: tuple[int, ...]
    """Sizes of the outer levels, first one first; none for what one program holds."""
    inner: tuple[int, int]
    """The two factors of the rows that one program holds."""

    @property
    def size(self) -> int:
        """Of the whole transform."""
        return math.prod(self.outer) * math.prod(self.inner)


def make_plan(length: int) -> Plan:
    """The factors of the least power of two that takes `length` samples."""
    size = max(256, 1 << (length - 1).bit_length())
    outer: tuple[int, ...] = ()
    if size > WHOLE:
        ratio = size // TILE
        root = 1 << (ratio.bit_length() // 2)
        outer = (max(ratio, 16),) if ratio <= 128 else (root, ratio // root)
    bits = (size // math.prod(outer)).bit_length() - 1
    return Plan(outer, (1 << bits // 2, 1 << (bits + 1) // 2))


def precision(dtype: torch.dtype, plan: Plan) -> str:
    """How factors are rounded in products.

    A result is rounded eight times on its way, so the digits of the inputs are too few: bfloat16 is multiplied as tf32,
    float16 as float32, which also has the range that the spectra of its numbers need.  Short transforms in float32 cost
    little, so nothing is rounded there.
    """
    if dtype == torch.bfloat16:
        return "tf32"
    return "ieee" if max(plan.inner) <= 32 and not plan.outer else "tf32x3"


def _phases(n_frequencies: int, samples: Tensor, size: int, quarter: int) -> Tensor:
    """exp(-2 pi i sample (frequency - quarter / 4) / size), both planes one after the other, by exact angles."""
    parts = (4 * torch.arange(n_frequencies)[:, None] - quarter) * samples % (4 * size)
    angle = parts.double() * (-2 * math.pi / (4 * size))
    return torch.stack([angle.cos(), angle.sin()]).float().flatten()


@functools.lru_cache(maxsize=64)
def inner_tables(n1: int, n2: int, quarter: int, device: torch.device) -> Float[Tensor, " numbers"]:
    """The matrices of a whole row."""
    rows, columns = torch.arange(n1), torch.arange(n2)
    tables = (_phases(n1, rows, n1, quarter), _phases(n1, columns, n1 * n2, quarter), _phases(n2, columns, n2, 0))
    return torch.cat(tables).to(device)


@functools.lru_cache(maxsize=64)
def level_tables(size: int, rest: int, block: int, quarter: int, device: torch.device) -> Float[Tensor, " numbers"]:
    """The matrices of an outer level of `size`, `rest` samples apart, in blocks of columns."""
    fine, coarse = torch.arange(block), torch.arange(0, rest, block)
    tables = [_phases(size, torch.arange(size), size, quarter)]
    tables += [_phases(size, columns, size * rest, quarter) for columns in (fine, coarse)]
    return torch.cat(tables).to(device)
