"""Steps of recurrences by compiled kernels (csrc/{modal,filter,memory}_step.cpp), as operators of torch.

Each is one call without temporary tensors, where torch takes a microsecond for each of its operations.  Derivatives run
on torch, through the definitions.

Axes: b batch, d channels, n modes, r rank, w window, t taps, h heads, k key channels, v value channels.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from longreach.ops.backend import OPS
from longreach.ops.gradients import gradients_by_autograd
from longreach.ops.native import LIBRARY, addresses, dtype_name, integers, kernel

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
PARTS = {torch.complex64: torch.float32, torch.complex128: torch.float64}
"""The dtype of the parts of complex numbers."""
SMALL = 1 << 17
"""Up to so many numbers a second thread costs more than it saves."""

LIBRARY.define(
    "modal_step(Tensor u, Tensor modes, Tensor abar, Tensor bbar, Tensor C, Tensor? skip, Tensor? left, Tensor? right)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(
    "filter_step(Tensor x, Tensor window, Tensor taps, int kept, Tensor? bias, Tensor[] added) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "memory_step(Tensor query, Tensor key, Tensor value, Tensor state, Tensor? decay, Tensor? read, Tensor? write,"
    " Tensor? bonus) -> (Tensor, Tensor)"
)


def native_modal_step(
    u: Float[Tensor, "b d"],
    modes: Num[Tensor, "b d n"],
    abar: Num[Tensor, "*#b #d n"],
    bbar: Num[Tensor, "*#b #d n"],
    C: Num[Tensor, "d n"],
    skip: Float[Tensor, " d"] | None,
    left: Num[Tensor, "r d n"] | None,
    right: Num[Tensor, "r d n"] | None,
) -> tuple[Float[Tensor, "b d"], Num[Tensor, "b d n"]]:
    """What longreach.ops.modal_step defines, for tensors on the CPU: modes of one of DTYPES, and the rest to match."""
    run = _modal_step if called_directly() else torch.ops.longreach.modal_step
    return run(u, modes, abar, bbar, C, skip, left, right)


def native_filter_step(
    x: Float[Tensor, "b d"],
    window: Float[Tensor, "b d w"],
    taps: Float[Tensor, "d t"],
    kept: int,
    bias: Float[Tensor, " d"] | None,
    added: Sequence[Float[Tensor, "b d"]],
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d {kept}"]]:
    """What longreach.ops.filter_step defines, for tensors on the CPU which have one of DTYPES in common, a real one."""
    return (_filter_step if called_directly() else torch.ops.longreach.filter_step)(x, window, taps, kept, bias, added)


def native_memory_step(
    query: Float[Tensor, "b h k"],
    key: Float[Tensor, "b h k"],
    value: Float[Tensor, "b h v"],
    state: Float[Tensor, "b h k v"],
    *others: Float[Tensor, "..."] | None,
) -> tuple[Float[Tensor, "b h v"], Float[Tensor, "b h k v"]]:
    """What longreach.ops.memory_step defines, for tensors on the CPU which have one of DTYPES in common, a real one."""
    return (_memory_step if called_directly() else torch.ops.longreach.memory_step)(query, key, value, state, *others)


def step_yields(*_: object, **__: object) -> str | None:
    """Why torch's form of a step is the better one, whatever its arguments are, or None."""
    return "would compute a step again for its gradient" if torch.is_grad_enabled() else None


def called_directly() -> bool:
    """Whether there is nothing that torch would do between a call and the kernel, which takes it some microseconds."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def dense(x: Num[Tensor, "..."]) -> Num[Tensor, "..."]:
    """`x`, or a copy of it, with its elements one after the other in memory."""
    return x if x.is_contiguous() and not (x.is_conj() or x.is_neg()) else x.resolve_conj().resolve_neg().contiguous()


def _rows(x: Tensor) -> tuple[Tensor, int, int]:
    """`x`, ([b,] d, n), with modes side by side, and its strides between rows and channels; 0 along what is shared."""
    if x.stride(-1) != 1 or x.is_conj() or x.is_neg():
        x = dense(x)
    channel = x.stride(-2) if x.shape[-2] > 1 else 0
    return x, x.stride(0) if x.ndim == 3 and x.shape[0] > 1 else 0, channel


def threads_for(work: int) -> int:
    """How many threads should share so many operations."""
    return 1 if work <= SMALL else torch.get_num_threads()


def _modal_step(
    u: Tensor,
    modes: Tensor,
    abar: Tensor,
    bbar: Tensor,
    C: Tensor,
    skip: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
) -> tuple[Tensor, Tensor]:
    u, modes, C = dense(u), dense(modes), dense(C)
    (b, d, n), parts, rank = modes.shape, 2 if modes.is_complex() else 1, 0
    abar, a_row, a_channel = _rows(abar)
    bbar, b_row, b_channel = _rows(bbar)
    skip = None if skip is None else dense(skip)
    if left is not None and right is not None:
        left, right, rank = dense(left), dense(right), left.shape[0]
    y, after = torch.empty_like(u), torch.empty_like(modes)
    sizes = integers(b, d, parts * n, rank, parts * a_row, parts * a_channel, parts * b_row, parts * b_channel)
    run = kernel(f"modal_step_{dtype_name(modes.dtype)}", 4, 0)
    inputs = addresses(u, modes, abar, bbar, C, skip, left, right)
    run(inputs, sizes, y.data_ptr(), after.data_ptr(), threads_for(b * d * n))
    return y, after


def _filter_step(
    x: Tensor, window: Tensor, taps: Tensor, kept: int, bias: Tensor | None, added: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    x, window = dense(x), dense(window)
    taps, _, between = _rows(taps)
    bias = None if bias is None else dense(bias)
    added = [other.resolve_neg() for other in added]
    y, after = torch.empty_like(x), x.new_empty(*x.shape, kept)
    sizes = integers(*window.shape, kept, taps.shape[1], between, len(added))
    strides = integers(*[stride for other in added for stride in other.stride()])
    run = kernel(f"filter_step_{dtype_name(x.dtype)}", 9, 0)
    inputs = x.data_ptr(), window.data_ptr(), taps.data_ptr(), None if bias is None else bias.data_ptr()
    run(*inputs, addresses(*added), strides, sizes, y.data_ptr(), after.data_ptr(), 1)
    return y, after


def _memory_step(query: Tensor, key: Tensor, value: Tensor, state: Tensor, *others: Tensor | None) -> tuple:
    inputs = [None if x is None else dense(x) for x in (query, key, value, *others, state)]
    b, h, k, v = state.shape
    y, after = state.new_empty(b, h, v), state.new_empty(b, h, k, v)
    run = kernel(f"memory_step_{dtype_name(state.dtype)}", 4, 0)
    run(addresses(*inputs), integers(b * h, h, k, v), y.data_ptr(), after.data_ptr(), threads_for(b * h * k * v))
    return y, after


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Tensors; of what is added the number, for its gradient is that of the output."""
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
    ctx.others = {i: x for i, x in enumerate(inputs) if not isinstance(x, Tensor | Sequence)}
    ctx.added = {i: len(x) for i, x in enumerate(inputs) if isinstance(x, Sequence)}


def _differentiate(name: str, ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """The gradients by the definition of the operator."""
    saved, given = iter(ctx.saved_tensors), {**ctx.others, **dict.fromkeys(ctx.added, ())}
    arguments = [given[i] if i in given else next(saved) for i in range(len(ctx.needs_input_grad))]
    needed = [isinstance(x, Tensor) and need for x, need in zip(arguments, ctx.needs_input_grad, strict=True)]
    found = gradients_by_autograd(OPS[name].backends["reference"], arguments, needed, grads)
    return tuple([grads[0]] * ctx.added[i] if i in ctx.added else gradient for i, gradient in enumerate(found))


def _modal_fake(u: Tensor, modes: Tensor, *system: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u.contiguous()), torch.empty_like(modes.contiguous())


def _filter_fake(
    x: Tensor, window: Tensor, taps: Tensor, kept: int, bias: Tensor | None, added: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x.contiguous()), x.new_empty(*x.shape, kept)


def _memory_fake(
    query: Tensor, key: Tensor, value: Tensor, state: Tensor, *others: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(value.contiguous()), torch.empty_like(state.contiguous())


for _name, _forward, _fake in (
    ("modal_step", _modal_step, _modal_fake),
    ("filter_step", _filter_step, _filter_fake),
    ("memory_step", _memory_step, _memory_fake),
):
    LIBRARY.impl(_name, _forward, "CPU")
    torch.library.register_fake(f"longreach::{_name}", _fake)
    torch.library.register_autograd(f"longreach::{_name}", partial(_differentiate, _name), setup_context=_save)
