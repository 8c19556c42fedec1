"""Kernels of products with block-diagonal matrices, a tile of rows against ENTRIES of the outputs of BLOCKS blocks.

`size_in` and `size_out` are those of a block of the matrix that is applied: with TRANSPOSED the weight is (blocks,
size_in, size_out) instead of (blocks, size_out, size_in).  UNIT is what sizes and strides were divided by: 8 where they
are multiples, to tell so.
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.monarch_kernels import products, row_tile
from longreach.ops.triton.products import rounded

SIZES = ["rows", "stride", "blocks", "size_in", "size_out"]
"""Arguments whose values compile nothing anew."""


@triton.jit
@no_type_check
def chunk_of(chunk, blocks, BLOCKS: tl.constexpr, ENTRIES: tl.constexpr):
    """Blocks and entries of a chunk."""
    chunks = tl.cdiv(blocks, BLOCKS)
    return chunk % chunks * BLOCKS + tl.arange(0, BLOCKS), chunk // chunks * ENTRIES + tl.arange(0, ENTRIES)


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def multiply(
    x, weight, y, rows, stride, blocks, size_in, size_out,
    TRANSPOSED: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, ENTRIES_IN: tl.constexpr,
    ENTRIES: tl.constexpr, UNIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y = weight x, in every block of every row."""
    size_in, size_out, stride = size_in * UNIT, size_out * UNIT, stride * UNIT
    programs = tl.cdiv(blocks, BLOCKS) * tl.cdiv(size_out, ENTRIES)
    block, o = chunk_of(tl.program_id(0) % programs, blocks, BLOCKS, ENTRIES)
    row, first_row = tl.arange(0, ROWS), (tl.program_id(0) // programs).to(tl.int64) * ROWS
    x, rows = x + first_row * stride, (rows - first_row).to(tl.int32)
    there = (block < blocks)[:, None, None] & (o < size_out)[None, None, :]
    accumulator = tl.zeros([BLOCKS, ROWS, ENTRIES], tl.float32)
    for start in range(0, size_in, ENTRIES_IN):
        c = start + tl.arange(0, ENTRIES_IN)
        at, inside = row_tile(x, row, block, c, rows, blocks, size_in, stride, 1, False)
        down, across, b = c[None, :, None], o[None, None, :], block[:, None, None]
        matrix = (b * size_in + down) * size_out + across if TRANSPOSED else (b * size_out + across) * size_in + down
        u, matrix = tl.load(at, inside, 0.0), tl.load(weight + matrix, there & (down < size_in), 0.0)
        accumulator = products(u, matrix, accumulator, PRECISION)
    width = blocks * size_out
    at, inside = row_tile(y + first_row * width, row, block, o, rows, blocks, size_out, width, 1, False)
    tl.store(at, rounded(accumulator, y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=[*SIZES, "tiles_each"])
@no_type_check
def gradient(
    x, grad, parts, rows, stride, blocks, size_in, size_out, tiles_each,
    BLOCKS: tl.constexpr, ROWS: tl.constexpr, ENTRIES_IN: tl.constexpr, ENTRIES: tl.constexpr, UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (blocks, outputs, inputs) of the gradient of the weight, of some tiles of rows."""
    size_in, size_out, stride = size_in * UNIT, size_out * UNIT, stride * UNIT
    chunks = tl.cdiv(size_in, ENTRIES_IN)
    c = tl.program_id(0) % chunks * ENTRIES_IN + tl.arange(0, ENTRIES_IN)
    block, o = chunk_of(tl.program_id(0) // chunks, blocks, BLOCKS, ENTRIES)
    row, width = tl.arange(0, ROWS), blocks * size_out
    accumulator = tl.zeros([BLOCKS, ENTRIES, ENTRIES_IN], tl.float32)
    for tile in range(tiles_each):
        first_row = (tl.program_id(1).to(tl.int64) * tiles_each + tile) * ROWS
        left = tl.maximum(rows - first_row, 0).to(tl.int32)
        at, inside = row_tile(x + first_row * stride, row, block, c, left, blocks, size_in, stride, 1, False)
        u = tl.load(at, inside, 0.0)
        at, inside = row_tile(grad + first_row * width, row, block, o, left, blocks, size_out, width, 1, False)
        accumulator = products(tl.permute(tl.load(at, inside, 0.0), (0, 2, 1)), u, accumulator, PRECISION)
    b, o, c = block[:, None, None], o[None, :, None], c[None, None, :]
    parts += tl.program_id(1).to(tl.int64) * blocks * size_out * size_in
    tl.store(parts + ((b * size_out + o) * size_in + c), accumulator, (b < blocks) & (o < size_out) & (c < size_in))
