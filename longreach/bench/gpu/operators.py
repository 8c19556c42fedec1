"""Recurrences, sums of state-space models, decoding, the fused loss, layers: ours beside our own forms in torch.

Axes: b batch, l length, d channels, n modes or poles, k points, v vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longreach.bench import baselines
from longreach.bench.gpu.cells import Cell, Contest
from longreach.bench.gpu.layers import layer_cells
from longreach.bench.gpu.sides import OUR_TORCH, OURS, leaf, our_torch, ours
from longreach.bench.gpu.sizes import Sizes
from longreach.ops import init_wkv

SECTION = "operators"
CHANNELS, MODES, ROWS = 256, 32, 4
"""Of state spaces; rows of coefficients that share their poles."""
DECODED, HEADS, HEAD_SIZE = 4, 16, 64
"""Sequences that are decoded at once, and their heads."""
WIDTH, ALL_LOGITS = 768, "all logits"
JUDGED = 1 << 13
"""Up to so many positions losses are judged: the judge keeps all logits, in float32."""
Maker = Callable[[Sizes, int, str], list[Any]]


def operator_cells(sizes: Sizes) -> list[Cell]:
    """The longest lengths last."""
    complex_scan = partial(_scan, torch.complex64)
    contests = [
        _contest(sizes, "linear_scan", "real", partial(_scan, torch.float32), sizes.operator_lengths),
        _contest(sizes, "linear_scan", "complex", complex_scan, sizes.operator_lengths),
        _contest(sizes, "wkv", "RWKV-4", _averages, sizes.operator_lengths, join=_wkv),
        _contest(sizes, "vandermonde", "kernels", _modes, sizes.operator_lengths),
        _contest(sizes, "vandermonde_adjoint", "moments", _moments, sizes.operator_lengths),
        _contest(sizes, "cauchy", "4 rows", _poles, sizes.operator_lengths[:-1]),
        _contest(sizes, "attention", "decoding", _decoding, sizes.operator_lengths[:-1]),
        _contest(
            sizes, "linear_cross_entropy", f"{sizes.vocabulary:,} tokens", _losses, sizes.operator_lengths
        )._replace(
            sides={OURS: ours("linear_cross_entropy"), ALL_LOGITS: baselines.cross_entropy},
            exact=baselines.cross_entropy,
            judged=JUDGED,
        ),
    ]
    return [cell for contest in contests for cell in contest.cells(rank=2)] + layer_cells(SECTION, sizes)


def _contest(
    sizes: Sizes,
    operator: str,
    case: str,
    inputs: Maker,
    lengths: tuple[int, ...],
    join: Callable[..., Tensor] | None = None,
) -> Contest:
    """Ours and our torch form; `join` calls an operator whose arguments or results are no tensors."""
    sides = {OURS: ours(operator), OUR_TORCH: our_torch(operator)}
    if join is not None:
        sides = {name: partial(join, side) for name, side in sides.items()}
    return Contest(
        *(SECTION, f"{operator}, {case}", lengths),
        inputs=partial(inputs, sizes),
        sides=sides,
        exact=sides[OUR_TORCH],
        main=lengths[1:2],
    )


def _shape(sizes: Sizes, length: int) -> tuple[int, int, int]:
    """(b, l, d) of a recurrence."""
    return max(1, sizes.operator_numbers // (CHANNELS * length)), length, CHANNELS


def _scan(dtype: torch.dtype, sizes: Sizes, length: int, device: str) -> list[Any]:
    b, l, d = _shape(sizes, length)
    ratio = 0.9 * torch.rand(b, l, d, device=device) * torch.randn(b, l, d, dtype=dtype, device=device).sgn()
    return [ratio.requires_grad_(), leaf(b, l, d, dtype=dtype, device=device), leaf(b, d, dtype=dtype, device=device)]


def _averages(sizes: Sizes, length: int, device: str) -> list[Any]:
    b, l, d = _shape(sizes, length)
    log_decay = (-torch.rand(d, device=device)).requires_grad_()
    return [log_decay, leaf(d, device=device), *(leaf(b, l, d, device=device) for _ in range(2))]


def _wkv(side: Callable[..., Any], log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return side(log_decay, bonus, key, value, init_wkv(len(key), key[0, 0]))[0]


def _ratios(device: str) -> Tensor:
    """Logarithms of ratios that reach over a few thousand positions."""
    decay = 10 ** -(4 * torch.rand(CHANNELS, MODES, device=device))
    return torch.complex(-decay, 3 * torch.rand(CHANNELS, MODES, device=device)).requires_grad_()


def _modes(sizes: Sizes, length: int, device: str) -> list[Any]:
    return [leaf(CHANNELS, MODES, dtype=torch.complex64, device=device), _ratios(device), length]


def _moments(sizes: Sizes, length: int, device: str) -> list[Any]:
    b, l, d = _shape(sizes, length)
    return [leaf(b, d, l, device=device), _ratios(device)]


def _poles(sizes: Sizes, length: int, device: str) -> list[Any]:
    """Coefficients and poles of S4, and the points on the circle at which it evaluates its kernel."""
    shape = CHANNELS, MODES
    angle = torch.linspace(0, torch.pi, length, device=device)
    w = torch.polar(1 - 0.1 * torch.rand(shape, device=device), 3 * torch.rand(shape, device=device))
    v = leaf(ROWS, *shape, dtype=torch.complex64, device=device)
    return [v, torch.polar(torch.full_like(angle, 1 + 1 / length), angle), w.requires_grad_()]


def _decoding(sizes: Sizes, length: int, device: str) -> list[Any]:
    """One query in every sequence, without gradients."""
    return [
        torch.randn(DECODED, HEADS, count, HEAD_SIZE, device=device, dtype=torch.bfloat16)
        for count in (1, length, length)
    ]


def _losses(sizes: Sizes, length: int, device: str) -> list[Any]:
    dtype = torch.bfloat16
    features = (leaf(rows, WIDTH, dtype=dtype, device=device) for rows in (length, sizes.vocabulary))
    return [*features, torch.randint(sizes.vocabulary, (length,), device=device)]
