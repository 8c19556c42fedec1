"""The sides of contests between operators: our kernels for GPUs, and our own forms in torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longreach.ops import OPS, use_backend

OURS, OUR_TORCH = "ours", "our torch form"
COMPILED = ("native", "triton")


def leaf(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random input that wants its gradient."""
    return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()


def ours(operator: str) -> Callable[..., Any]:
    """The kernel in Triton; where there is none, or no GPU, whatever is chosen."""

    def run(*inputs: Any, **options: Any) -> Any:
        on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in inputs)
        if not on_gpu or "triton" not in OPS[operator].backends:
            return OPS[operator](*inputs, **options)
        with use_backend(**{operator: "triton"}):
            return OPS[operator](*inputs, **options)

    return run


def our_torch(operator: str) -> Callable[..., Any]:
    """What would be chosen without compiled kernels."""

    def run(*inputs: Any, **options: Any) -> Any:
        reasons = OPS[operator].explain(*inputs, **options)
        free = [name for name, reason in reasons.items() if reason is None and name not in COMPILED]
        with use_backend(**{operator: free[-1]}):
            return OPS[operator](*inputs, **options)

    return run
