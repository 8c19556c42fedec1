"""For operations whose backward pass is computed, not recorded: the second derivative is refused with a clear message.

Wrap the inputs: `forward(differentiable_once(x, "attention"), ...)`.  The first derivative passes through unchanged; to
differentiate that one again raises, where torch alone would say that some internal function is not implemented.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def differentiable_once(x: Float[Tensor, "*axes"], operation: str) -> Float[Tensor, "*axes"]:
    """`x` itself, whose gradient cannot be differentiated; `operation` is the name in the message."""
    return _Once.apply(x, operation) if torch.is_grad_enabled() and x.requires_grad else x


def second_derivative_message(operation: str) -> str:
    """Why the second derivative of a backend of `operation` is refused, and what to do."""
    return (
        f"{operation}: this backend computes first derivatives only; for higher ones put the whole computation "
        f'inside `with use_backend({operation}="reference")`, which needs more memory'
    )


class _Once(torch.autograd.Function):
    """The identity, with a gradient that refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, operation: str) -> Tensor:
        ctx.operation = operation
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _NoMore.apply(grads[0], ctx.operation), None


class _NoMore(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, operation: str) -> Tensor:
        ctx.operation = operation
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(second_derivative_message(ctx.operation))
