"""How attention is launched: what its kernels are given, and in which tiles they work.  Does not import Triton."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from longreach.ops.attention_mask import AttentionMask
from longreach.ops.attention_operator import Options
from longreach.ops.attention_tiles import spans_of_tiles

WIDEST = 256
FEW_ROWS = 64
"""Up to so many queries, of all heads that share keys, are one block, and the keys are split among programs."""
FARTHEST = 2**30
"""No two positions are farther apart; sums of two such distances are still 32-bit integers."""


class Given(NamedTuple):
    """What the mask has, (b, l) or (b, m) each, and from where to where each block of queries, or of keys, looks."""

    query_position: Tensor | None
    key_position: Tensor | None
    query_segment: Tensor | None
    key_segment: Tensor | None
    key_mask: Tensor | None
    ranges: Tensor | None


class Terms(NamedTuple):
    """What makes scores and weights of products."""

    slopes: Tensor | None
    bias: Tensor | None
    seed: Tensor | None
    scale: float
    softcap: float | None
    threshold: int
    keep: float
    """What remaining weights are multiplied by."""


class Constants(NamedTuple):
    """What is compiled into a kernel."""

    BM: int
    BN: int
    E: int
    F: int
    WIDTH: int
    VALUE_WIDTH: int
    UNIT: int
    CAUSAL: bool
    SPLIT: bool
    PLAIN: bool
    """Whether who sees whom depends on the indices alone, so that most tiles need no mask."""
    PRECISION: str


class Tiling(NamedTuple):
    """Queries and keys in a tile, warps, and how many tiles are loaded ahead."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


TILINGS: dict[tuple[str, int, int], Tiling] = {
    ("forward", 2, 64): Tiling(128, 64, 4, 3),
    ("forward", 2, 128): Tiling(128, 64, 8, 3),
    ("forward", 2, 256): Tiling(128, 32, 8, 2),
    ("forward", 4, 64): Tiling(64, 32, 4, 2),
    ("forward", 4, 128): Tiling(64, 32, 8, 2),
    ("forward", 4, 256): Tiling(32, 32, 8, 1),
    ("queries", 2, 64): Tiling(128, 64, 8, 2),
    ("queries", 2, 128): Tiling(64, 64, 8, 2),
    ("queries", 2, 256): Tiling(64, 32, 8, 1),
    ("queries", 4, 64): Tiling(64, 32, 8, 1),
    ("queries", 4, 128): Tiling(32, 32, 8, 1),
    ("queries", 4, 256): Tiling(16, 16, 4, 1),
    ("keys", 2, 64): Tiling(64, 128, 8, 2),
    ("keys", 2, 128): Tiling(32, 128, 8, 2),
    ("keys", 2, 256): Tiling(32, 32, 4, 1),
    ("keys", 4, 64): Tiling(32, 64, 8, 1),
    ("keys", 4, 128): Tiling(32, 32, 8, 1),
    ("keys", 4, 256): Tiling(16, 16, 4, 1),
}
"""By kernel, bytes of an element, and the padded width of keys or values, whichever is wider."""


def padded(width: int) -> int:
    """The next power of two, at least 16, which tensor cores want."""
    return max(16, 1 << (width - 1).bit_length())


def tiling(kernel: str, dtype: torch.dtype, width: int, n_rows: int) -> Tiling:
    """Of one of the kernels forward, queries, keys and split; `n_rows` matters to the last alone."""
    if kernel != "split":
        return TILINGS[kernel, dtype.itemsize, max(64, padded(width))]
    keys = max(16, min(128, 2**14 // dtype.itemsize // max(64, padded(width))))
    return Tiling(16 if n_rows <= 16 else FEW_ROWS, keys, 4, 2)


class Problem:
    """The arguments of one call, as the kernels want them."""

    def __init__(self, inputs: tuple[Float[Tensor, "..."] | None, ...], mask: AttentionMask, options: Options) -> None:
        query, key, value, slopes, bias = inputs
        assert query is not None
        assert key is not None
        assert value is not None
        self.mask, self.options = mask, options
        self.query, self.key, self.value = (aligned(x) for x in (query, key, value))
        (self.b, self.h, self.l, self.e), (_, self.g, self.m, self.f) = query.shape, value.shape
        strides = [s if n > 1 else 0 for x in self.heads for n, s in zip(x.shape[:3], x.stride()[:3], strict=True)]
        self.unit = 8 if all(size % 8 == 0 for size in (*strides, self.e, self.f)) else 1
        self.bias = None if bias is None else bias.expand(self.b, self.h, self.l, self.m)
        bias_strides = (0,) * 4 if self.bias is None else self.bias.stride()
        window = min(FARTHEST, FARTHEST if mask.window is None else mask.window)
        self.integers = (*(s // self.unit for s in strides), *bias_strides, self.l, self.m, self.h, self.g, window)
        threshold = round((options.dropout - 0.5) * 2**32)
        seed = None if options.dropout_seed is None else options.dropout_seed.to(torch.int64).view(1)
        slopes = None if slopes is None else slopes.contiguous()
        keep = 1.0 / (1.0 - options.dropout) if seed is not None else 1.0
        self.terms = Terms(slopes, self.bias, seed, options.scale, options.softcap, threshold, keep)

    @property
    def heads(self) -> tuple[Float[Tensor, "b h l e"], Float[Tensor, "b g m e"], Float[Tensor, "b g m f"]]:
        """Queries, keys and values."""
        return self.query, self.key, self.value

    @property
    def n_total(self) -> int:
        """The queries of all rows and heads."""
        return self.b * self.h * self.l

    @property
    def width(self) -> int:
        """Of keys or values, whichever are wider."""
        return max(self.e, self.f)

    @property
    def few(self) -> bool:
        """Whether there are so few queries that the keys are split."""
        return self.h // self.g * self.l <= FEW_ROWS

    def constants(self, tile: Tiling, *, split: bool = False) -> Constants:
        """For one kernel."""
        plain = not split and all(x is None for x in self.mask[2:])
        precision = "tf32x3" if self.query.dtype == torch.float32 else "ieee"
        widths = padded(self.e), padded(self.f), self.e, self.f
        return Constants(tile.queries, tile.keys, *widths, self.unit, self.mask.causal, split, plain, precision)

    def given(self, tile: Tiling | None, *, of_keys: bool = False) -> Given:
        """For one kernel; without a tiling nothing says where to look."""
        mask = self.mask
        tables = [
            self.per_row(table)
            for table in (mask.query_position, mask.key_position, mask.query_segment, mask.key_segment)
        ]
        key_mask, ranges = self.per_row(mask.key_mask), None
        if tile is not None and any(table is not None for table in (*tables, key_mask)):
            located = mask.located(self.l, self.m, self.query.device)
            spans = spans_of_tiles(located, (self.l, self.m), (tile.queries, tile.keys), of_keys=of_keys)
            ranges = self.per_row(spans.to(torch.int32))
        return Given(
            tables[0], tables[1], tables[2], tables[3], None if key_mask is None else key_mask.view(torch.uint8), ranges
        )

    def per_row(self, table: Shaped[Tensor, "#b ..."] | None) -> Shaped[Tensor, "b ..."] | None:
        """A table of the mask, for every row of the batch, without gaps."""
        return None if table is None else table.expand(self.b, *table.shape[1:]).contiguous()


def aligned(x: Float[Tensor, "b h l x"]) -> Float[Tensor, "b h l x"]:
    """`x`, or a copy of it if its rows have gaps or do not begin where blocks of 16 bytes do."""
    x = x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
    return x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % 16 else x


def n_splits(problem: Problem, tile: Tiling) -> int:
    """How many programs share the keys of a head: enough to keep the device busy, none with less than two tiles."""
    device = problem.query.device
    busy = 2 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 64)
    return max(1, min(busy // max(1, problem.b * problem.g), problem.m // (2 * tile.keys)))
