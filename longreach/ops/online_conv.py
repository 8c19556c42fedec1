"""Convolution with a long filter while the input arrives: exact, and O(log^2 t) per position on average.

    y_t = sum_{j < kernel_length} kernel_j x_{t-j}

The past is cut into blocks whose sizes are BASE times the powers of two in the binary expansion of its length, the
largest first.  A block of u inputs that ends before position s carries a *tile*: what its inputs contribute to the
outputs s .. s+u-1.  By then it has been merged with the blocks after it into a larger one, so the tiles of all blocks
together always cover the present, and the convolution of a step is one number from each tile plus a direct sum over the
few inputs that fill no block yet.  Merging costs one FFT; everything else is shared between the old and the new state.
Of a tile only what is still to come is kept, rounded up to half of it, a quarter and so on; and inputs are never copied
again once they fill a piece.  So a state of t positions holds t inputs and fewer than 2 t numbers of tiles, and in the
step that merges everything into one block, where the old state exists beside the new one, inputs exist once.
A block as long as the filter has no influence beyond its tile; it is dropped when its tile ends, so that the state of a
filter of k taps never holds more than O(k) inputs, however long the stream is.

This is the relaxed multiplication of van der Hoeven (https://doi.org/10.1016/S0747-7171(02)00107-1), used to generate
in Flash Inference (https://arxiv.org/abs/2410.12982) and FutureFill (https://arxiv.org/abs/2410.03766).

Axes: b batch, d channels (each with its own filter), l length of a chunk, u size of a block, p of a piece of it, w of
what is left of its tile, r < BASE, n taps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from longreach.errors import InputError
from longreach.ops.filter_step import filter_step
from longreach.ops.long_conv import long_conv

BASE = 64
"""The size of the smallest block: below it, summing directly is as fast as keeping books."""

PIECE = BASE << 10
"""Larger blocks hold their inputs in pieces of this size, which merging does not copy."""

Kernel = Callable[[int], Float[Tensor, "d n"]]
"""The first n taps of the filter, (d, n), for any n up to the kernel length."""


class Block(NamedTuple):
    """u consecutive inputs, and what they contribute to the last w of the u outputs that follow them."""

    inputs: tuple[Float[Tensor, "b d p"], ...]
    tile: Float[Tensor, "b d w"]

    @property
    def size(self) -> int:
        """u."""
        return sum(piece.shape[-1] for piece in self.inputs)


class OnlineConvState(NamedTuple):
    """What the past contributes to the future.  Positions are implied by the sizes."""

    blocks: tuple[Block, ...]
    recent: Float[Tensor, "b d r"]


def init_online_conv(
    batch_size: int, channels: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> OnlineConvState:
    """The state before the first input.  `dtype` is that of the state and of all sums: float32 or wider."""
    recent = torch.zeros(batch_size, channels, 0, dtype=dtype, device=device)
    if recent.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"online_conv: the state has dtype {recent.dtype}; sums over a long past need float32 or wider"
        )
    return OnlineConvState((), recent)


def online_conv_step(
    x: Float[Tensor, "b d"], state: OnlineConvState, kernel: Kernel, kernel_length: int
) -> tuple[Float[Tensor, "b d"], OnlineConvState]:
    """One position: y_t and the state after it.

    Asks the kernel for BASE taps, or all if there are fewer, and every BASE steps for as many as twice the size of the
    block that is completed then.  Pure: `state` stays valid, and shares with the new one everything but the few recent
    inputs.
    """
    recent, blocks = state.recent, state.blocks
    _check(x, state, kernel_length)
    reach, since = _reach(blocks), recent.shape[-1]
    tiles = [(block.tile, end) for block, end in zip(blocks, reach, strict=True)]
    added = [tile[..., tile.shape[-1] - end + since] for tile, end in tiles]  # every tile reaches beyond the present
    taps = kernel(min(BASE, kernel_length))
    y, recent = filter_step(x.to(recent.dtype), recent, taps, recent.shape[-1] + 1, added=added)
    if recent.shape[-1] < BASE:
        return y.to(x.dtype), OnlineConvState(blocks, recent)
    return y.to(x.dtype), _after(blocks, reach, recent, kernel, kernel_length)


def online_conv_prefill(
    x: Float[Tensor, "b d l"], state: OnlineConvState, kernel: Kernel, kernel_length: int
) -> tuple[Float[Tensor, "b d l"], OnlineConvState]:
    """A chunk of any length: what steps would give, outputs and state, for O(l log l) besides the merging of blocks.

    `kernel(n)` gives the first n taps, in the dtype of the state, for n up to `kernel_length`, the number of taps there
    are.  It must be the same filter in every call that continues from a state.
    """
    _check(x, state, kernel_length)
    length, recent = x.shape[-1], torch.cat([state.recent, x.to(state.recent.dtype)], dim=-1)
    reach = _reach(state.blocks)
    covering = sum(end >= recent.shape[-1] for end in reach)  # these tiles contain all that their blocks contribute
    rest = torch.cat([*_pieces(state.blocks[covering:]), recent], dim=-1)
    y = _last_outputs(rest, kernel(min(rest.shape[-1], kernel_length)), length)
    for block, end in zip(state.blocks[:covering], reach, strict=False):
        start = block.tile.shape[-1] - end + state.recent.shape[-1]
        y = y + block.tile[..., start : start + length]
    return y.to(x.dtype), _after(state.blocks, reach, recent, kernel, kernel_length)


def held_inputs(state: OnlineConvState) -> list[Float[Tensor, "b d _"]]:
    """The inputs that the state still holds, oldest first: all of them as long as there are no more than taps."""
    return [*_pieces(state.blocks), state.recent]


def refuse_late_padding(mask: Bool[Tensor, "b l"], past: Sequence[Float[Tensor, "b _ _"]]) -> None:
    """Raise InputError where `mask` has padding (False) after the first real position of a row.

    Padding is silence, which leaves no trace before a row begins, but would move what was read further away.  A row has
    begun when anything in `past`, all that its state holds, is not zero.
    """
    begun = torch.stack([tensor.flatten(1).any(1) for tensor in past]).any(0)
    late = (mask[:, :-1] & ~mask[:, 1:]).any(1) | (begun & ~mask.all(1))
    if late.any():
        raise InputError(
            f"rows {late.nonzero().flatten().tolist()} have padding after their first real position; pad prompts on "
            "the left, and continue rows that differ in length one by one"
        )


def _check(x: Tensor, state: OnlineConvState, kernel_length: int) -> None:
    if kernel_length < 1 or x.shape[:2] != state.recent.shape[:2] or x.shape[-1] == 0:
        raise InputError(
            f"online_conv: x is {tuple(x.shape)} and must not be empty, the state is for (batch, channels) "
            f"{tuple(state.recent.shape[:2])}, and kernel_length={kernel_length} must be at least 1"
        )


def _reach(blocks: Sequence[Block]) -> list[int]:
    """How far beyond the end of the last block the tile of each block reaches; never farther than the one before."""
    reach, after = [], 0
    for block in reversed(blocks):
        reach.append(block.size - after)
        after += block.size
    return reach[::-1]


def _pieces(blocks: tuple[Block, ...]) -> list[Tensor]:
    return [piece for block in blocks for piece in block.inputs]


def _last_outputs(x: Tensor, taps: Tensor, count: int) -> Tensor:
    """The last `count` outputs of the causal convolution of `x`."""
    return long_conv(x, taps)[..., x.shape[-1] - count :]


def _after(
    blocks: tuple[Block, ...], reach: list[int], recent: Tensor, kernel: Kernel, kernel_length: int
) -> OnlineConvState:
    """The state whose last inputs are `recent`: full blocks are cut off and merged with those whose tiles end there."""
    full = recent.shape[-1] // BASE * BASE
    if not full:
        return OnlineConvState(blocks, recent)
    kept = sum(end > full for end in reach)
    unfinished = [*_pieces(blocks[kept:]), recent]
    length = sum(piece.shape[-1] for piece in unfinished)
    whole = length // BASE * BASE
    size = BASE
    while size < kernel_length:
        size *= 2
    start = max(whole // size - 1, 0) * size  # what came before lies farther back than the filter reaches
    after = list(blocks[:kept])
    while start < whole:
        if whole - start >= size:
            pieces = tuple(_cut(unfinished, at, min(size, PIECE)) for at in range(start, start + size, PIECE))
            after.append(Block(pieces, _tile(torch.cat(pieces, dim=-1), kernel, kernel_length)))
            start += size
        size //= 2
    return OnlineConvState(tuple(map(_trimmed, after, _reach(after))), _cut(unfinished, whole, length - whole))


def _trimmed(block: Block, live: int) -> Block:
    """Without most of what has passed of the tile, whose last `live` positions are still to come."""
    width = block.tile.shape[-1]
    while width >= 2 * live:
        width //= 2
    return block if width == block.tile.shape[-1] else Block(block.inputs, block.tile[..., -width:].clone())


def _cut(pieces: Sequence[Tensor], start: int, count: int) -> Tensor:
    """`count` inputs of all pieces in a row: a piece itself if it is just these, else a copy that keeps none alive."""
    found, passed = [], 0
    for piece in pieces:
        low, high = max(start - passed, 0), min(start + count - passed, piece.shape[-1])
        if (low, high) == (0, count) == (0, piece.shape[-1]):
            return piece
        if low < high:
            found.append(piece[..., low:high])
        passed += piece.shape[-1]
    return torch.cat(found, dim=-1) if found else pieces[-1][..., :0].clone()


def _tile(inputs: Tensor, kernel: Kernel, kernel_length: int) -> Tensor:
    """What u inputs contribute to the next u outputs: taps from u on see the past of an input, those below its future.

    tile_t = sum_{j >= 0} kernel_{u+j} x_{t-j} + sum_{j > 0} kernel_{u-j} x_{t+j}
    """
    size = inputs.shape[-1]
    available = min(2 * size, kernel_length)
    taps = kernel(available)
    past, future = taps[:, size:], taps[:, 1:size].flip(-1)
    if available <= size:
        past, future = taps.new_zeros(len(taps), 1), pad(future, (size - available, 0))
    return long_conv(inputs, past, reverse_kernel=future)
