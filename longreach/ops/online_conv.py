"""Convolution with a long filter while the input arrives: exact, and O(log^2 t) per position on average.

    y_t = sum_{j < kernel_length} kernel_j x_{t-j}

The past is cut into blocks whose sizes are BASE times the powers of two in the binary expansion of its length, the
largest first.  A block of u inputs that ends before position s carries a *tile*: what its inputs contribute to the
outputs s .. s+u-1.  By then it has been merged with the blocks after it into a larger one, so the tiles of all blocks
together always cover the present, and the convolution of a step is one number from each tile plus a direct sum over the
few inputs that fill no block yet.  Merging costs one FFT; everything else is shared between the old and the new state.
A block as long as the filter has no influence beyond its tile; it is dropped when its tile ends, so that the state of a
filter of k taps never holds more than O(k) inputs, however long the stream is.

This is the relaxed multiplication of van der Hoeven (https://doi.org/10.1016/S0747-7171(02)00107-1), used to generate
in Flash Inference (https://arxiv.org/abs/2410.12982) and FutureFill (https://arxiv.org/abs/2410.03766).

Axes: b batch, d channels (each with its own filter), l length of a chunk, u size of a block, r < BASE, n taps.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.long_conv import long_conv

BASE = 64
"""The size of the smallest block: below it, summing directly is as fast as keeping books."""

Kernel = Callable[[int], Tensor]
"""The first n taps of the filter, (d, n), for any n up to the kernel length."""


class Block(NamedTuple):
    """u consecutive inputs, and what they contribute to the u outputs that follow them."""

    inputs: Float[Tensor, "b d u"]
    tile: Float[Tensor, "b d u"]


class OnlineConvState(NamedTuple):
    """What the past contributes to the future.  Positions are implied by the sizes."""

    blocks: tuple[Block, ...]
    recent: Float[Tensor, "b d r"]


def init_online_conv(
    batch_size: int, channels: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> OnlineConvState:
    """The state before the first input.  `dtype` is that of the sums, and should be float32 or wider."""
    return OnlineConvState((), torch.zeros(batch_size, channels, 0, dtype=dtype, device=device))


def online_conv_step(
    x: Float[Tensor, "b d"], state: OnlineConvState, kernel: Kernel, kernel_length: int
) -> tuple[Float[Tensor, "b d"], OnlineConvState]:
    """One position.  Asks the kernel for at most BASE taps, but for twice its size when a block is completed."""
    y, state = online_conv_prefill(x[..., None], state, kernel, kernel_length)
    return y[..., 0], state


def online_conv_prefill(
    x: Float[Tensor, "b d l"], state: OnlineConvState, kernel: Kernel, kernel_length: int
) -> tuple[Float[Tensor, "b d l"], OnlineConvState]:
    """A chunk of any length, as if it came step by step; the cost is that of its own length, O(l log l).

    Only a chunk that completes a block pays for what the block replaces, as a step does.
    """
    if kernel_length < 1:
        raise InputError(f"kernel_length={kernel_length}: a filter has at least one tap")
    length = x.shape[-1]
    recent = torch.cat([state.recent, x.to(state.recent.dtype)], dim=-1)
    whole = recent.shape[-1] // BASE * BASE
    # the inputs from the end of the last block on count as `after`; a block's tile ends its size after the block
    y, after = 0, 0
    open_blocks = len(state.blocks)
    ends = []  # how far, from the end of the last block, each tile reaches
    for block in reversed(state.blocks):
        ends.insert(0, block.tile.shape[-1] - after)
        after += block.tile.shape[-1]
    covering = sum(end >= recent.shape[-1] for end in ends)
    for block, end in zip(state.blocks[:covering], ends, strict=False):
        start = block.tile.shape[-1] - end + recent.shape[-1] - length
        y = y + block.tile[..., start : start + length]
    tail = torch.cat([block.inputs for block in state.blocks[covering:]] + [recent], dim=-1)
    y = y + _last_outputs(tail, kernel(min(tail.shape[-1], kernel_length)), length)
    open_blocks = sum(end > whole for end in ends)
    unfinished = torch.cat([block.inputs for block in state.blocks[open_blocks:]] + [recent], dim=-1)
    blocks = _cut(unfinished, kernel, kernel_length) if whole else state.blocks[open_blocks:]
    recent = recent[..., whole:].clone() if whole else recent
    return y.to(x.dtype), OnlineConvState(state.blocks[:open_blocks] + blocks, recent)


def _last_outputs(x: Tensor, kernel: Tensor, count: int) -> Tensor:
    """The last `count` outputs of the convolution of `x` with as many taps as it needs."""
    if count == 1:
        return (x[..., x.shape[-1] - kernel.shape[-1] :] * kernel.flip(-1)).sum(-1, keepdim=True)
    return long_conv(x, kernel)[..., x.shape[-1] - count :]


def _cut(x: Tensor, kernel: Kernel, kernel_length: int) -> tuple[Block, ...]:
    """Blocks for all of `x` but the last few inputs, with their tiles."""
    largest = BASE
    while largest < kernel_length:
        largest *= 2
    whole = x.shape[-1] // BASE * BASE
    start = max(whole // largest - 1, 0) * largest  # older ones have no influence any more
    blocks, size = [], largest
    while size >= BASE:
        if whole - start >= size:
            blocks.append(_block(x[..., start : start + size].clone(), kernel, kernel_length))
            start += size
        size //= 2
    return tuple(blocks)


def _block(inputs: Tensor, kernel: Kernel, kernel_length: int) -> Block:
    """Lags 1 .. 2u-1 lead from the inputs to the tile: around lag u, some ahead of it and some behind."""
    size = inputs.shape[-1]
    available = min(2 * size, kernel_length)
    taps = pad(kernel(available), (0, 2 * size - available))
    return Block(inputs, long_conv(inputs, taps[:, size:], reverse_kernel=taps[:, 1:size].flip(-1)))
