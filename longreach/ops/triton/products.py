"""What kernels share.  Imports Triton, so only kernels import this."""

from typing import no_type_check

import triton
import triton.language as tl

from longreach.ops.triton import available

INTERPRETED = tl.constexpr(available.INTERPRETED)


@triton.jit
@no_type_check
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """accumulator + a b on tensor cores, accumulated in float32.

    PRECISION is how factors in float32 are rounded: "ieee" not at all, "tf32" to 10 bits, "tf32x3" in three products to
    nearly all of theirs.  Interpreted, factors are widened, which changes nothing else: Triton's interpreter multiplies
    the bit patterns of bfloat16.
    """
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
@no_type_check
def rounded(x, DTYPE: tl.constexpr):
    """`x` to the nearest number of DTYPE.  Triton's interpreter cuts off digits on the way to bfloat16."""
    if INTERPRETED and tl.bfloat16 == DTYPE and x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1) & -0x10000).to(tl.float32, bitcast=True)
    return x.to(DTYPE)
