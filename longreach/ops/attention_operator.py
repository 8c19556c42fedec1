"""What the tiled backends of attention have in common as operators of torch: arguments, shapes, the way to gradients.

Such an operator takes ARGUMENTS, gives the result and each query's maximum and inverse sum, and comes with a second one
that computes the gradients of those of the first five that need one.  Second derivatives are refused.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longreach.ops.differentiable_once import second_derivative_message

ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? alibi_slopes, Tensor? bias, "  # with derivatives
    "bool causal, int? window, Tensor? key_mask, Tensor? query_segment, Tensor? key_segment, "
    "Tensor? query_position, Tensor? key_position, "  # AttentionMask
    "float scale, float? softcap, float dropout, Tensor? dropout_seed"  # Options
)
RESULTS = "(Tensor output, Tensor softmax)"
GRADIENT_ARGUMENTS = f"Tensor grad, Tensor output, Tensor softmax, bool[] needed, {ARGUMENTS}"
N_INPUTS = 5


class Options(NamedTuple):
    """What is neither a tensor with a derivative nor a mask."""

    scale: float
    softcap: float | None
    dropout: float
    dropout_seed: Tensor | None


def allocate(*arguments: Any) -> tuple[Tensor, ...]:
    """Room for the result (b, h, l, f), and for each query's maximum and inverse sum (b, h, l, 2)."""
    query, value = arguments[0], arguments[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(*query.shape[:3], value.shape[3]), query.new_empty(*query.shape[:3], 2, dtype=wide)


def allocate_gradients(grad: Any, output: Any, softmax: Any, needed: list[bool], *arguments: Any) -> list[Any]:
    """Room for the gradients that are needed."""
    return [torch.empty_like(x) for x, wanted in zip(arguments[:N_INPUTS], needed, strict=True) if wanted]


def save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
    """Keep all arguments and results."""
    ctx.save_for_backward(*output, *(x if isinstance(x, Tensor) else None for x in inputs))
    ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]


def backward_by(gradients: Callable[..., list[Tensor]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """The backward pass that calls an operator for the gradients."""

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        output, softmax, *tensors = ctx.saved_tensors
        arguments = [option if tensor is None else tensor for tensor, option in zip(tensors, ctx.options, strict=True)]
        needed = list(ctx.needs_input_grad[:N_INPUTS])
        found = iter(gradients(grad, output, softmax, needed, *arguments))
        return tuple(next(found) if wanted else None for wanted in needed) + (None,) * (len(arguments) - N_INPUTS)

    return backward


def register_gradients(forward: Any, gradients: Any) -> None:
    """Make one custom operator, `gradients`, the derivative of another, `forward`, and refuse to differentiate it."""
    forward.register_autograd(backward_by(gradients), setup_context=save_for_backward)
    gradients.register_autograd(refuse_backward)


def refuse_backward(ctx: Any, *grads: Any) -> None:
    """There is no second derivative."""
    raise RuntimeError(second_derivative_message("attention"))
