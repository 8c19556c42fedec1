"""The linear map of every position, y = x W^T + b, with products that use the whole processor.

torch leaves float32 products on a CPU to MKL, which uses half the width of AVX-512 on processors that are not Intel's.
oneDNN, which is also in torch, uses all of it: on a Zen 5 core 230 to 260 GFLOP/s instead of 105 (docs/performance.md).
torch itself never chooses it for float32.

Axes: `...` any leading axes, k width in, n width out; m rows of a product.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from longreach.ops.backend import op
from longreach.ops.transposed import transposed

WORTHWHILE = 1 << 21
"""Multiplications below which a product takes less time than asking for it."""


@op
def linear(
    x: Float[Tensor, "... k"], weight: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None = None
) -> Float[Tensor, "... n"]:
    """x W^T + b, as torch defines it, autocast included; O(k n) a position."""
    return F.linear(x, weight, bias)


@functools.cache
def _vendor() -> str:
    """Who made the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "unknown")


def _onednn_refuses(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    if torch.compiler.is_compiling():
        return "is for eager mode; torch.compile chooses its own products"
    if {x.device.type, weight.device.type} != {"cpu"} or torch.is_autocast_enabled("cpu"):
        return "is for the CPU, outside of autocast"
    if {t.dtype for t in (x, weight, bias) if t is not None} != {torch.float32}:
        return "is for float32"
    return None if torch.backends.mkldnn.is_available() and x.numel() else "has nothing to do, or no oneDNN to do it"


def _onednn_yields(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str | None:
    if _vendor() != "AuthenticAMD" or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "is faster where MKL does not use AVX-512, which is on AMD's processors"
    if x.numel() * weight.shape[0] < WORTHWHILE:
        return "is slower to call, and there is little to do"
    return None


@linear.backend("onednn", refuses=_onednn_refuses, yields=_onednn_yields)
def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All three products of training by oneDNN, with any number of derivatives."""
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).unflatten(0, x.shape[:-1])


def _product(a: Float[Tensor, "m k"], b: Float[Tensor, "n k"], bias: Float[Tensor, " n"] | None) -> Tensor:
    """a b^T + bias.  Of two operands that lie transposed it is the narrow one that should come first."""
    a, b = _laid_out(a), _laid_out(b)
    if bias is None and a.shape[0] > b.shape[0] and a.stride(1) != 1 and b.stride(1) != 1:
        return _product(b, a, None).mT.contiguous()
    if a.stride(1) != 1:  # oneDNN's wrapper would copy it too, more slowly
        a = transposed(a.mT[None])[0]
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


def _laid_out(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return _product(a, b, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (a, b) = grad_outputs, ctx.saved_tensors
        of_a, of_b, of_bias = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.mT, None) if of_a else None,
            _Product.apply(grad.mT, a.mT, None) if of_b else None,
            grad.sum(0) if of_bias else None,
        )
