"""The layouts of modules, (batch, length, dim), and of convolutions, (batch, dim, length), as copies of each other.

A transposed view costs nothing by itself, but every operation on it and a tensor of the other layout walks through
memory at random: on a CPU a sum is then 10 times slower, the gradient of a GELU 18 times.  So data is laid out anew
where the layout changes, and so is its gradient.

Axes: b batch, m and n the axes that change places.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from longreach.ops.backend import op
from longreach.ops.native import LIBRARY, MISSING, address, dtype_name, kernel

DTYPES = (torch.float32, torch.float64)

LIBRARY.define("transposed(Tensor x) -> Tensor")


@op
def transposed(x: Float[Tensor, "b m n"]) -> Float[Tensor, "b n m"]:
    """`x` with its last two axes exchanged, contiguous."""
    return x.mT.contiguous()


def _native_refuses(x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"runs on the CPU, the input is on {x.device.type}"
    return MISSING if x.dtype in DTYPES else f"has no kernel for {x.dtype}"


def _native_yields(x: Tensor) -> str | None:
    return "the input is a view of what is wanted" if x.mT.is_contiguous() else None


@transposed.backend("native", refuses=_native_refuses, yields=_native_yields)
def _native(x: Tensor) -> Tensor:
    """In squares that are turned in registers; the gradient is a copy of the same kind."""
    return torch.ops.longreach.transposed(x)


def _forward(x: Tensor) -> Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = x.new_empty(x.shape[0], x.shape[2], x.shape[1])
    run = kernel(f"transposed_{dtype_name(x.dtype)}", n_pointers=2, n_sizes=5)
    run(address(x), address(y), *x.shape, *x.stride()[:2], torch.get_num_threads())
    return y


LIBRARY.impl("transposed", _forward, "CPU")


@torch.library.register_fake("longreach::transposed")
def _fake(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1])


torch.library.register_autograd("longreach::transposed", lambda ctx, grad: transposed(grad))
