"""Kernels of products with Monarch matrices of two factors, row tiles against chunks of blocks.

A row meets `near`, the factor whose blocks read it, and then `far`, the one whose blocks write the result: `first` and
`second`, or transposed, `second` and `first`.  Between every block of the one and every block of the other lie `rank`
hidden numbers of a row.  A tile of them, (blocks of near, rows, blocks of far x rank), is one batched product; it is
permuted on chip to (blocks of far, rows, blocks of near x rank), the factor of the next one.

    blocks, size    of the input (`near`'s) and of the output (`far`'s): how many, and how many entries each has
    BLOCKS, RANKS   how many of both are taken together; BLOCKS x RANKS is 16 or more, as tensor cores ask for
    WIDTH           entries that are dealt out together
    UNIT_...        what the numbers of blocks, and of entries, were divided by: 8 where they are multiples, to tell so
"""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton.products import product, rounded


@triton.jit
@no_type_check
def products(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b, a stack of matrices; warps share the matrices out, or one of them where it is alone."""
    if a.shape[0] > 1:
        accumulator = product(a, b, accumulator, PRECISION)
    else:
        c = tl.reshape(accumulator, [a.shape[1], b.shape[2]])
        c = product(tl.reshape(a, [a.shape[1], a.shape[2]]), tl.reshape(b, [a.shape[2], b.shape[2]]), c, PRECISION)
        accumulator = tl.reshape(c, [1, a.shape[1], b.shape[2]])
    return accumulator


@triton.jit
@no_type_check
def dealt(block, entry, blocks, WIDTH: tl.constexpr):
    """Where an entry of a block lies after the shuffle: (entries, blocks), WIDTH entries at a time."""
    return entry // WIDTH * (blocks * WIDTH) + block * WIDTH + entry % WIDTH


@triton.jit
@no_type_check
def row_tile(array, row, block, entry, rows, blocks, size, stride, WIDTH: tl.constexpr, DEALT: tl.constexpr):
    """Pointers to a tile (blocks, rows, entries) of rows that lie `stride` apart, and which of them there are."""
    inside = (block < blocks)[:, None, None] & (row < rows)[None, :, None] & (entry < size)[None, None, :]
    block, entry = block[:, None, None], entry[None, None, :]
    at = dealt(block, entry, blocks, WIDTH) if DEALT else block * size + entry
    return array + row[None, :, None].to(tl.int64) * stride + at, inside


@triton.jit
@no_type_check
def factor_tile(
    factor, block, other, within, entry, blocks, others, size, rank, WIDTH: tl.constexpr, FIRST: tl.constexpr
):
    """Pointers into `first` (k, (l, rank), p), or `second` (l, s, (k, rank)), and which of them there are.

    `block` and `entry` are of the side of the row that the factor is on; `other` counts the other one's blocks.
    """
    inside = (block < blocks) & (other < others) & (within < rank) & (entry < size)
    if FIRST:
        return factor + ((block * (others * rank) + dealt(other, within, others, WIDTH)) * size + entry), inside
    return factor + ((block * size + entry) * (others * rank) + other * rank + within), inside


@triton.jit
@no_type_check
def far_tile(far, j, start, r, d, blocks_in, blocks_out, size, rank, WIDTH, TRANSPOSED, RANKS):
    """Pointers to blocks j, (blocks and ranks from `start` and r on), entries d, and which of them there are."""
    pair = tl.arange(0, j.shape[0] * RANKS)
    other, within = (start + pair // RANKS)[None, :, None], (r + pair % RANKS)[None, :, None]
    j, d = j[:, None, None], d[None, None, :]
    return factor_tile(far, j, other, within, d, blocks_out, blocks_in, size, rank, WIDTH, TRANSPOSED)


@triton.jit
@no_type_check
def hidden(
    x, near, row, i, j, r, rows, stride, blocks_in, size_in, blocks_out, rank,
    TRANSPOSED: tl.constexpr, WIDTH: tl.constexpr, RANKS: tl.constexpr, ENTRIES_IN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The numbers between some blocks i of `near` and j of `far`, from the rank r on: (j, rows, (i, rank))."""
    BLOCKS: tl.constexpr = i.shape[0]
    pair = tl.arange(0, BLOCKS * RANKS)
    other, within = tl.min(j, 0) + pair // RANKS, r + pair % RANKS
    z = tl.zeros([BLOCKS, row.shape[0], BLOCKS * RANKS], tl.float32)
    for start in range(0, size_in, ENTRIES_IN):
        c = start + tl.arange(0, ENTRIES_IN)
        at, inside = row_tile(x, row, i, c, rows, blocks_in, size_in, stride, WIDTH, TRANSPOSED)
        u = tl.load(at, inside, 0.0)
        at, inside = factor_tile(
            near, i[:, None, None], other[None, None, :], within[None, None, :], c[None, :, None],
            blocks_in, blocks_out, size_in, rank, WIDTH, not TRANSPOSED,
        )  # fmt: skip
        z = products(u, tl.load(at, inside, 0.0), z, PRECISION)
    z = tl.reshape(rounded(z, x.dtype.element_ty), [BLOCKS, row.shape[0], BLOCKS, RANKS])
    return tl.reshape(tl.permute(z, (2, 1, 0, 3)), [BLOCKS, row.shape[0], BLOCKS * RANKS])


SIZES = ["rows", "stride", "stack_stride", "blocks_in", "size_in", "blocks_out", "size_out", "rank"]
"""Arguments whose values compile nothing anew."""


@triton.jit(do_not_specialize=SIZES)
@no_type_check
def multiply(
    x, near, far, y, rows, stride, stack_stride, blocks_in, size_in, blocks_out, size_out, rank,
    TRANSPOSED: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    ENTRIES_IN: tl.constexpr, ENTRIES: tl.constexpr, UNIT_BLOCKS: tl.constexpr, UNIT_SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of rows, ENTRIES of each of some blocks of the result."""
    blocks_in, blocks_out = blocks_in * UNIT_BLOCKS, blocks_out * UNIT_BLOCKS
    size_in, size_out, stride = size_in * UNIT_SIZES, size_out * UNIT_SIZES, stride * UNIT_SIZES
    rank = RANKS if RANKS <= 4 else rank * UNIT_SIZES
    chunks, stack = tl.cdiv(blocks_out, BLOCKS), tl.program_id(1).to(tl.int64)
    programs = chunks * tl.cdiv(size_out, ENTRIES)
    chunk, first_row = tl.program_id(0) % programs, (tl.program_id(0) // programs).to(tl.int64) * ROWS
    row, j = tl.arange(0, ROWS), chunk % chunks * BLOCKS + tl.arange(0, BLOCKS)
    d = chunk // chunks * ENTRIES + tl.arange(0, ENTRIES)
    x += stack * (stack_stride * UNIT_SIZES) + first_row * stride
    rows = (rows - first_row).to(tl.int32)
    near += stack * blocks_in * size_in * blocks_out * rank
    far += stack * blocks_in * size_out * blocks_out * rank
    accumulator = tl.zeros([BLOCKS, ROWS, ENTRIES], tl.float32)
    for start in range(0, blocks_in, BLOCKS):
        i = start + tl.arange(0, BLOCKS)
        for r in range(0, rank, RANKS):
            z = hidden(
                x, near, row, i, j, r, rows, stride, blocks_in, size_in, blocks_out, rank,
                TRANSPOSED, WIDTH, RANKS, ENTRIES_IN, PRECISION,
            )  # fmt: skip
            at, inside = far_tile(far, j, start, r, d, blocks_in, blocks_out, size_out, rank, WIDTH, TRANSPOSED, RANKS)
            accumulator = products(z, tl.load(at, inside, 0.0), accumulator, PRECISION)
    row_size = blocks_out * size_out
    y += (first_row * tl.num_programs(1) + stack) * row_size
    at, inside = row_tile(
        y, row, j, d, rows, blocks_out, size_out, tl.num_programs(1) * row_size, WIDTH, not TRANSPOSED
    )
    tl.store(at, rounded(accumulator, y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=[*SIZES, "tiles_each"])
@no_type_check
def gradient(
    x, near, grad, parts, rows, stride, stack_stride, blocks_in, size_in, blocks_out, size_out, rank, tiles_each,
    TRANSPOSED: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr,
    ENTRIES_IN: tl.constexpr, ENTRIES: tl.constexpr, UNIT_BLOCKS: tl.constexpr, UNIT_SIZES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile (blocks j, (blocks i, rank), ENTRIES) of the gradient of `far`, of some tiles of rows."""
    blocks_in, blocks_out = blocks_in * UNIT_BLOCKS, blocks_out * UNIT_BLOCKS
    size_in, size_out, stride = size_in * UNIT_SIZES, size_out * UNIT_SIZES, stride * UNIT_SIZES
    rank = RANKS if RANKS <= 4 else rank * UNIT_SIZES
    chunk, stack = tl.program_id(0), tl.program_id(2).to(tl.int64)
    chunks = tl.cdiv(blocks_out, BLOCKS)
    j, chunk = chunk % chunks * BLOCKS + tl.arange(0, BLOCKS), chunk // chunks
    chunks = tl.cdiv(blocks_in, BLOCKS)
    start, chunk = chunk % chunks * BLOCKS, chunk // chunks
    chunks = tl.cdiv(rank, RANKS)
    r, d = chunk % chunks * RANKS, chunk // chunks * ENTRIES + tl.arange(0, ENTRIES)
    i, row = start + tl.arange(0, BLOCKS), tl.arange(0, ROWS)
    near += stack * blocks_in * size_in * blocks_out * rank
    x += stack * (stack_stride * UNIT_SIZES)
    row_size = blocks_out * size_out
    grad += stack * row_size
    accumulator = tl.zeros([BLOCKS, BLOCKS * RANKS, ENTRIES], tl.float32)
    for tile in range(tiles_each):
        first_row = (tl.program_id(1).to(tl.int64) * tiles_each + tile) * ROWS
        left = tl.maximum(rows - first_row, 0).to(tl.int32)
        z = hidden(
            x + first_row * stride, near, row, i, j, r, left, stride, blocks_in, size_in, blocks_out, rank,
            TRANSPOSED, WIDTH, RANKS, ENTRIES_IN, PRECISION,
        )  # fmt: skip
        apart = tl.num_programs(2) * row_size
        at, inside = row_tile(
            grad + first_row * apart, row, j, d, left, blocks_out, size_out, apart, WIDTH, not TRANSPOSED
        )
        accumulator = products(tl.permute(z, (0, 2, 1)), tl.load(at, inside, 0.0), accumulator, PRECISION)
    parts += (tl.program_id(1).to(tl.int64) * tl.num_programs(2) + stack) * blocks_in * size_out * blocks_out * rank
    at, inside = far_tile(parts, j, start, r, d, blocks_in, blocks_out, size_out, rank, WIDTH, TRANSPOSED, RANKS)
    tl.store(at, accumulator, inside)
