"""WKV of RWKV-4 (https://arxiv.org/abs/2305.13048) and its adjoint on a GPU, in Triton; defined in longreach.ops.wkv.

    aggregate    every chunk of time from an empty state
    carry        from chunk to chunk, the states that enter
    walk         every chunk from its state on: the averages

All sums are kept divided by e^exponent, that of the largest term, so no exponential exceeds 1.  The adjoint
of a state is such a sum too, over the positions that follow: with N, D the sums of the past and Z the denominator of y,

    gN_{t-1} = e^w gN_t + grad_t / Z_t,    gD_{t-1} = e^w gD_t - grad_t y_t / Z_t

and its exponent times that of the past's is at most 1.  Kept for the adjoint: the arguments, and the states that enter
the chunks; it computes the state before every position again, 12 bytes for each of b l c while it runs.

Floor in bytes, per element, for keys and values of s bytes: forward 2 s + 4; backward 4 s + 4 (and 2 s + 24 for the
states, written and read back).  4 exponentials forward, 6 backward.

Axes: b batch, l length, c channels, m chunks.
"""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.ops.native import LIBRARY
from longreach.ops.triton.linear_scan import LANES, Cut, cut_time

DTYPES = (torch.float32, torch.float64)
"""Of the state; keys and values may be narrower."""

LIBRARY.define(
    "wkv_triton(Tensor log_decay, Tensor bonus, Tensor key, Tensor value, Tensor state, Tensor? mask) "
    "-> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "wkv_triton_adjoint(Tensor grad, Tensor log_decay, Tensor bonus, Tensor key, Tensor value, Tensor? mask, "
    "Tensor entering, Tensor final) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def triton_wkv(
    log_decay: Float[Tensor, " c"],
    bonus: Float[Tensor, " c"],
    key: Float[Tensor, "b l c"],
    value: Float[Tensor, "b l c"],
    state: Float[Tensor, "3 b c"],
    mask: Bool[Tensor, "b l"] | None,
) -> tuple[Float[Tensor, "b l c"], Float[Tensor, "3 b c"]]:
    """The averages and the state after them; decay, bonus and state have one of DTYPES in common."""
    y, final, _ = torch.ops.longreach.wkv_triton(log_decay, bonus, key, value, state, mask)
    return y, final


def _kernels() -> ModuleType:
    """They import Triton, so not before they are needed."""
    from longreach.ops.triton import wkv_kernels

    return wkv_kernels


def _launch(kernel: Any, key: Tensor, cut: Cut, *tensors: Any) -> None:
    """One program for each block of channels of some chunks of a row of the batch."""
    batch, length, channels = key.shape
    rows = LANES // cut.block
    grid = (batch, -(-channels // cut.block) * -(-cut.n_chunks // rows))
    sizes = length, channels, cut.n_chunks, cut.chunk_length
    kernel[grid](*tensors, *sizes, ROWS=rows, BLOCK=cut.block, num_warps=4)


def _carry(key: Tensor, cut: Cut, initial: Tensor, states: Tensor, reverse: bool) -> Tensor:
    batch, _, channels = key.shape
    final = torch.empty_like(initial)
    grid = (batch * -(-channels // 32),)
    _kernels().carry[grid](initial, final, states, channels, cut.n_chunks, REVERSE=reverse, BLOCK=32, num_warps=1)
    return final


def _forward(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Averages, state after, and the states that enter the chunks, with their decays."""
    key, value, state = key.contiguous(), value.contiguous(), state.contiguous()
    log_decay, bonus, mask = log_decay.contiguous(), bonus.contiguous(), None if mask is None else mask.contiguous()
    cut = cut_time(*key.shape)
    y, states = state.new_empty(key.shape), state.new_empty(4, key.shape[0], cut.n_chunks, key.shape[2])
    if key.numel() == 0:
        return y, state.clone(), states
    _launch(_kernels().aggregate, key, cut, log_decay, key, value, mask, states)
    final = _carry(key, cut, state, states, reverse=False)
    _launch(_kernels().walk, key, cut, log_decay, bonus, key, value, mask, states, y, None)
    return y, final, states


def _adjoint(
    grad: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    entering: Tensor,
    final: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the five arguments; `final` is the adjoint of the state after all, in its own scale."""
    grad, key, value, final = grad.contiguous(), key.contiguous(), value.contiguous(), final.contiguous()
    log_decay, bonus, mask = log_decay.contiguous(), bonus.contiguous(), None if mask is None else mask.contiguous()
    cut = cut_time(*key.shape)
    grads, sums = (torch.empty_like(key), torch.empty_like(value)), torch.zeros_like(entering[:2])
    if key.numel() == 0:
        return sums[0].sum((0, 1)), sums[1].sum((0, 1)), *grads, final
    arguments = log_decay, bonus, key, value, mask
    past = entering.new_empty(3, *key.shape)
    _launch(_kernels().walk, key, cut, *arguments, entering, None, past)
    states = entering.clone()  # for the decays
    _launch(_kernels().aggregate_adjoint, key, cut, *arguments, states, past, grad)
    first = _carry(key, cut, final, states, reverse=True)
    _launch(_kernels().walk_adjoint, key, cut, *arguments, states, past, grad, grads, sums)
    return sums[0].sum((0, 1)), sums[1].sum((0, 1)), *grads, first


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    log_decay, bonus, key, value, state, mask = inputs
    ctx.save_for_backward(log_decay, bonus, key, value, state, mask, *output[1:])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, grad: Tensor, grad_final: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    """The exponent of the state after all is a free choice, through which no derivative passes."""
    log_decay, bonus, key, value, state, mask, final, entering = ctx.saved_tensors
    above, below, _ = grad_final
    found = torch.ops.longreach.wkv_triton_adjoint(
        grad, log_decay, bonus, key, value, mask, entering, torch.stack([above, below, -final[2]])
    )
    *others, (above, below, exponent) = found
    scale = torch.exp(exponent + state[2])
    above, below = above * scale, below * scale
    return *others, torch.stack([above, below, above * state[0] + below * state[1]]), None


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("wkv_triton", _forward, _device)
    LIBRARY.impl("wkv_triton_adjoint", _adjoint, _device)


@torch.library.register_fake("longreach::wkv_triton")
def _fake(
    log_decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, state: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    n_chunks = cut_time(*key.shape).n_chunks
    final = torch.empty_like(state, memory_format=torch.contiguous_format)
    return state.new_empty(key.shape), final, state.new_empty(4, key.shape[0], n_chunks, key.shape[2])


@torch.library.register_fake("longreach::wkv_triton_adjoint")
def _fake_adjoint(
    grad: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    entering: Tensor,
    final: Tensor,
) -> tuple[Tensor, ...]:
    vectors = (entering.new_empty(key.shape[2]) for _ in range(2))
    sequences = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (key, value))
    return *vectors, *sequences, torch.empty_like(final, memory_format=torch.contiguous_format)


torch.library.register_autograd("longreach::wkv_triton", _backward, setup_context=_save)
