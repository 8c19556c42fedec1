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
