"""A kernel for tests of what is around kernels.  Imports Triton."""

import triton
import triton.language as tl

from longreach.ops.triton.products import product


@triton.jit
def square(a_pointer, b_pointer, c_pointer, SIZE: tl.constexpr):
    """c = a b, of matrices of SIZE x SIZE."""
    index = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    c = product(tl.load(a_pointer + index), tl.load(b_pointer + index), tl.zeros([SIZE, SIZE], tl.float32), "ieee")
    tl.store(c_pointer + index, c)
