"""The sides of contests between operators: our kernels for GPUs, and our own forms in torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longreach.ops import OPS, use_backend

OURS, OUR_TORCH = "ours", "our torch form"
COMPILED = ("native", "triton")


def leaf(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random input that wants its gradient."""
    return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()


def ours(operator: str, *names: str) -> Callable[..., Any]:
    """The kernel in Triton; where there is none, or no GPU, whatever is chosen.  Inputs go by `names`, if any."""

    def run(*inputs: Any) -> Any:
        call = _bound(names, inputs)
        on_gpu = any(isinstance(x, Tensor) and x.is_cuda for x in inputs)
        if not on_gpu or "triton" not in OPS[operator].backends:
            return call(OPS[operator])
        with use_backend(**{operator: "triton"}):
            return call(OPS[operator])

    return run


def our_torch(operator: str, *names: str) -> Callable[..., Any]:
    """What would be chosen without compiled kernels."""

    def run(*inputs: Any) -> Any:
        call = _bound(names, inputs)
        reasons = call(OPS[operator].explain)
        free = [name for name, reason in reasons.items() if reason is None and name not in COMPILED]
        with use_backend(**{operator: free[-1]}):
            return call(OPS[operator])

    return run


def _bound(names: Sequence[str], inputs: Sequence[Any]) -> Callable[[Callable[..., Any]], Any]:
    """What calls a function with these inputs; those of the last names may be missing."""
    if names:
        return lambda function: function(**dict(zip(names, inputs, strict=False)))
    return lambda function: function(*inputs)
