"""Attention and its gradients by compiled kernels (csrc/attention.cpp), as operators of torch.

Linear memory: besides the results the kernels keep about 200 KB a thread.  Where queries, keys and values are bfloat16
and the processor multiplies those, it does, in sums of float32; else everything within is float32 or wider.

Axes: b batch, g key-value heads, h query heads, l queries, m keys, e and f widths.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.ops.attention_dropout import threshold
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_operator import (
    ARGUMENTS,
    GRADIENT_ARGUMENTS,
    N_INPUTS,
    RESULTS,
    Options,
    allocate,
    allocate_gradients,
    backward_by,
    refuse_backward,
    save_for_backward,
)
from longreach.ops.native import LIBRARY, address, dtype_name, kernel

DTYPES = (torch.float32, torch.float64)
"""What a query may be, or be widened to."""

LIBRARY.define(f"attention({ARGUMENTS}) -> {RESULTS}")
LIBRARY.define(f"attention_adjoint({GRADIENT_ARGUMENTS}) -> Tensor[]")


def native_attention(
    inputs: tuple[Float[Tensor, "..."] | None, ...], mask: AttentionMask, options: Options
) -> Float[Tensor, "b h l f"]:
    """Attention of query, key, value and slopes, on the CPU, as longreach.ops.attention defines it.

    `mask` has positions; the last of `inputs`, the bias, is None.
    """
    return torch.ops.longreach.attention(*inputs, *mask, *options)[0]


class _Call(NamedTuple):
    """One call as the kernels take it."""

    name: str
    """Of the kind of kernel."""
    inputs: list[Tensor | None]
    sizes: list[int]
    numbers: list[float]

    def run(self, function: str, outputs: Sequence[Tensor | None]) -> None:
        """Call a kernel, which writes the outputs."""
        inputs = (ctypes.c_void_p * len(self.inputs))(*(address(x) for x in self.inputs))
        sizes = (ctypes.c_int64 * len(self.sizes))(*self.sizes)
        numbers = (ctypes.c_double * len(self.numbers))(*self.numbers)
        results = (ctypes.c_void_p * len(outputs))(*(address(x) for x in outputs))
        call = kernel(f"{function}_{self.name}", n_pointers=4, n_sizes=0)
        call(inputs, sizes, numbers, results, torch.get_num_threads())


def _prepared(
    arguments: Sequence[Any], grad: Tensor | None = None, output: Tensor | None = None, softmax: Tensor | None = None
) -> _Call:
    """The arguments of an operator, and for the adjoint its results and their gradient, laid out for the kernels."""
    query, key, value, slopes, _ = arguments[:N_INPUTS]
    mask = AttentionMask(*arguments[N_INPUTS : -len(Options._fields)])
    options = Options(*arguments[-len(Options._fields) :])
    wide = torch.promote_types(query.dtype, torch.float32)
    low = all(x.dtype == torch.bfloat16 for x in (query, key, value)) and _knows_bfloat16()
    dtype = torch.bfloat16 if low else wide
    rows = [None if x is None else _in_rows(x, dtype) for x in (query, key, value, grad, output)]
    by_columns = (None, None, rows[2], None) if grad is None else (rows[0], rows[1], None, rows[3])
    columns = [_in_columns(x) if low and x is not None else x for x in by_columns]
    masks, n_masks = _masks(mask)
    seed = 0 if options.dropout_seed is None else int(options.dropout_seed) & 0xFFFFFFFF
    dropped = 0.0 if options.dropout_seed is None else options.dropout
    limit = min(threshold(dropped), 2**31 - 1)
    (b, h, l, e), (_, g, m, f) = (x.shape for x in (rows[0], rows[2]) if x is not None)
    sizes = [b, h, g, l, m, e, f, mask.causal, mask.window or 0, n_masks, limit, seed]
    strides = [step for x in (*rows, *columns) for step in _strides(x)]
    slopes = None if slopes is None else slopes.to(wide).contiguous()
    inputs = [*rows, *columns, slopes, *masks, softmax]
    return _Call(dtype_name(dtype), inputs, sizes + strides, [options.scale, options.softcap or 0.0, 1 / (1 - dropped)])


def _in_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """With whole vectors of features side by side; what is added to fill them is zero."""
    x, missing = x.to(dtype), -x.shape[3] % (32 if dtype == torch.bfloat16 else 16)
    if missing:
        return pad(x, (0, missing))
    uneven = dtype == torch.bfloat16 and any(step % 2 for step in x.stride()[:3])
    return x.contiguous() if x.stride(3) != 1 or uneven else x


def _in_columns(x: Tensor) -> Tensor:
    """(b, h, l / 2, e, 2): neighbouring positions side by side, a position of zeros after the last of an odd number."""
    x = pad(x, (0, 0, 0, 1)) if x.shape[2] % 2 else x
    return x.unflatten(2, (-1, 2)).transpose(3, 4).contiguous()


def _strides(x: Tensor | None) -> list[int]:
    """Between batches, heads and positions (or pairs of them), in units, which are pairs of bfloat16 or numbers."""
    if x is None:
        return [0, 0, 0]
    return [step // (2 if x.dtype == torch.bfloat16 else 1) for step in x.stride()[:3]]


def _masks(mask: AttentionMask) -> tuple[list[Tensor | None], int]:
    """Positions, segments and the mask of keys, all of as many rows, which are counted."""
    integers = mask.query_position, mask.key_position, mask.query_segment, mask.key_segment
    tensors = [*(None if x is None else x.long() for x in integers), mask.key_mask]
    count = next((x.shape[0] for x in tensors if x is not None and x.shape[0] != 1), 1)
    return [None if x is None else x.expand(count, -1).contiguous() for x in tensors], count


def _knows_bfloat16() -> bool:
    answer = ctypes.c_int32()
    kernel("attention_knows_bfloat16", n_pointers=1, n_sizes=0, n_ints=0)(ctypes.byref(answer))
    return bool(answer.value)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    output, softmax = allocate(*arguments)
    call = _prepared(arguments)
    if output.shape[3] == call.sizes[6] and output.dtype == softmax.dtype:
        call.run("attention", [output, softmax])
        return output, softmax
    padded = torch.empty(*output.shape[:3], call.sizes[6], dtype=softmax.dtype)
    call.run("attention", [padded, softmax])
    return output.copy_(padded[..., : output.shape[3]]), softmax


def _adjoint(grad: Tensor, output: Tensor, softmax: Tensor, needed: list[bool], *arguments: Any) -> list[Tensor]:
    found = native_gradients(grad, output, softmax, needed, *arguments)
    return [y.to(x.dtype).contiguous() for x, y in zip(arguments[:N_INPUTS], found, strict=True) if y is not None]


def native_gradients(
    grad: Float[Tensor, "b h l f"],
    output: Float[Tensor, "b h l f"],
    softmax: Float[Tensor, "b h l 2"],
    needed: list[bool],
    *arguments: Any,
) -> list[Float[Tensor, "..."] | None]:
    """The gradients of query, key, value and slopes as they are summed, in float32 or wider; None for the bias."""
    call = _prepared(arguments, grad, output, softmax)
    widths = call.sizes[5], call.sizes[5], call.sizes[6]
    found = [
        torch.zeros(*x.shape[:3], width, dtype=softmax.dtype) if wanted else None
        for x, width, wanted in zip(arguments[:3], widths, needed[:3], strict=True)
    ]
    slopes = torch.empty(arguments[0].shape[1], dtype=softmax.dtype) if needed[3] else None
    call.run("attention_adjoint", [*found, slopes])
    inner = [None if y is None else y[..., : x.shape[3]] for x, y in zip(arguments[:3], found, strict=True)]
    return [*inner, slopes, None]


LIBRARY.impl("attention", _forward, "CPU")
LIBRARY.impl("attention_adjoint", _adjoint, "CPU")
torch.library.register_fake("longreach::attention")(allocate)
torch.library.register_fake("longreach::attention_adjoint")(allocate_gradients)
torch.library.register_autograd(
    "longreach::attention",
    backward_by(lambda *arguments: torch.ops.longreach.attention_adjoint(*arguments)),
    setup_context=save_for_backward,
)
torch.library.register_autograd("longreach::attention_adjoint", refuse_backward)
