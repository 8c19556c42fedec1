"""A kernel for tests of what is around kernels.  Imports Triton."""

import triton
import triton.language as tl

from longreach.ops.triton.products import product, rounded


@triton.jit
def square(a_pointer, b_pointer, c_pointer, SIZE: tl.constexpr):
    """c = a b, of matrices of SIZE x SIZE."""
    index = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    c = product(tl.load(a_pointer + index), tl.load(b_pointer + index), tl.zeros([SIZE, SIZE], tl.float32), "ieee")
    tl.store(c_pointer + index, c)


@triton.jit
def narrow(x_pointer, y_pointer, SIZE: tl.constexpr):
    """y = x, to the nearest number."""
    index = tl.arange(0, SIZE)
    tl.store(y_pointer + index, rounded(tl.load(x_pointer + index), y_pointer.dtype.element_ty))
