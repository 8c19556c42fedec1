"""What operators of torch that compute attention have in common: their arguments, and how a derivative calls another.

Both are made by `torch.library.custom_op` with a schema of these arguments: one gives the result and what it keeps for
the gradients, (output, kept), the other the gradients of those of the first N_INPUTS arguments that need one.
"""

from typing import Any, NamedTuple

from torch import Tensor

from longreach.ops.differentiable_once import second_derivative_message

ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? alibi_slopes, Tensor? bias, "  # with derivatives
    "bool causal, int? window, Tensor? key_mask, Tensor? query_segment, Tensor? key_segment, "
    "Tensor? query_position, Tensor? key_position, "  # AttentionMask
    "float scale, float? softcap, float dropout, Tensor? dropout_seed"  # Options
)
N_INPUTS = 5
GRADIENT_ARGUMENTS = f"Tensor grad, Tensor output, Tensor kept, bool[] needed, {ARGUMENTS}"


class Options(NamedTuple):
    """What is neither a tensor with a derivative nor a mask."""

    scale: float
    softcap: float | None
    dropout: float
    dropout_seed: Tensor | None


def register_gradients(forward: Any, gradients: Any) -> None:
    """Make one custom operator, `gradients`, the derivative of another, `forward`, and refuse to differentiate it."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output, *(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.options = [None if isinstance(x, Tensor) else x for x in inputs]

    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        output, kept, *tensors = ctx.saved_tensors
        arguments = [option if tensor is None else tensor for tensor, option in zip(tensors, ctx.options, strict=True)]
        needed = list(ctx.needs_input_grad[:N_INPUTS])
        found = iter(gradients(grad, output, kept, needed, *arguments))
        return tuple(next(found) if wanted else None for wanted in needed) + (None,) * (len(arguments) - N_INPUTS)

    forward.register_autograd(backward, setup_context=save)
    gradients.register_autograd(_refuse)


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(second_derivative_message("attention"))
