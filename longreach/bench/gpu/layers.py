"""What layers multiply with besides dense matrices: short filters, butterflies, Monarch and block-diagonal matrices.

Axes: b batch, l length, d channels, n entries of a row, o outputs and i inputs of a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from longreach.bench.gpu.cells import Cell, Contest
from longreach.bench.gpu.sides import OUR_TORCH, OURS, leaf, our_torch, ours
from longreach.bench.gpu.sizes import Sizes

TAPS, BRANCHES = 3, 3
"""Of the short convolution of Hyena, which filters all its projections at once."""
ENTRIES, ROOT = 1024, 32
"""Of a row of structured products, and its root: as many blocks of as many entries."""
Maker = Callable[[Sizes, int, str], list[Any]]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def layer_cells(section: str, sizes: Sizes) -> list[Cell]:
    """Lengths are positions for short filters, and rows for products."""
    lengths = sizes.operator_lengths[:-1]
    contests = [
        _contest(section, "short_conv, positions side by side", partial(_short, False), sizes, sizes.operator_lengths),
        _contest(section, "short_conv, channels side by side", partial(_short, True), sizes, sizes.operator_lengths),
        _contest(section, "butterfly_multiply, float32", partial(_butterfly, torch.float32), sizes, lengths),
        _contest(section, "butterfly_multiply, complex64", partial(_butterfly, torch.complex64), sizes, lengths),
    ]
    for name, dtype in DTYPES.items():
        contests.append(_contest(section, f"block_diagonal, {name}", partial(_blocks, dtype, 1), sizes, lengths))
        contests.append(_contest(section, f"monarch, {name}", partial(_blocks, dtype, 2), sizes, lengths))
    return [cell for contest in contests for cell in contest.cells(rank=2)]


def _contest(section: str, case: str, inputs: Maker, sizes: Sizes, lengths: tuple[int, ...]) -> Contest:
    """Ours and our torch form."""
    operator = case.partition(",")[0]
    sides = {OURS: ours(operator), OUR_TORCH: our_torch(operator)}
    if operator == "monarch":  # it takes its factors as a list
        sides = {name: partial(_listed, side) for name, side in sides.items()}
    return Contest(
        *(section, case, lengths),
        inputs=partial(inputs, sizes),
        sides=sides,
        exact=sides[OUR_TORCH],
        main=lengths[1:2],
    )


def _listed(side: Callable[..., Any], x: Any, *factors: Any) -> Any:
    return side(x, list(factors))


def _short(channels_last: bool, sizes: Sizes, length: int, device: str) -> list[Any]:
    """bfloat16 with weights in float32, as under autocast."""
    d = BRANCHES * sizes.width
    b = max(1, sizes.operator_numbers // (d * length))
    shape = (b, length, d) if channels_last else (b, d, length)
    x = torch.randn(shape, device=device, dtype=torch.bfloat16)
    x = (x.mT if channels_last else x).requires_grad_()
    return [x, leaf(d, TAPS, device=device), leaf(d, device=device)]


def _butterfly(dtype: torch.dtype, sizes: Sizes, rows: int, device: str) -> list[Any]:
    """Factors that keep the norm of a row, about."""
    levels = ENTRIES.bit_length() - 1
    factors = torch.randn(1, 1, levels, ENTRIES // 2, 2, 2, dtype=dtype, device=device) / 2**0.5
    return [leaf(rows, 1, ENTRIES, dtype=dtype, device=device), factors.requires_grad_()]


def _blocks(dtype: torch.dtype, count: int, sizes: Sizes, rows: int, device: str) -> list[Any]:
    shape = ROOT, ENTRIES // ROOT, ENTRIES // ROOT
    factors = [(torch.randn(shape, device=device) / ROOT**0.5).to(dtype).requires_grad_() for _ in range(count)]
    return [leaf(rows, ENTRIES, dtype=dtype, device=device), *factors]
