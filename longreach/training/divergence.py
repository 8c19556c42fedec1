"""What happened when a loss or a gradient is no longer finite: which layer went wrong first."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from longreach.training.processes import local_part


class DivergenceError(RuntimeError):
    """The loss or a gradient is infinite or not a number; the message names the step and the layer."""


def first_bad_layer(model: nn.Module, backward: Callable[[], None]) -> str | None:
    """Repeat the forward and backward pass that failed, watching every layer; what was the first to go wrong, or None.

    `backward` runs both passes.  Weights are looked at first, then outputs in the order of the forward pass, then the
    gradients of outputs in the order of the backward pass, then those of parameters.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    forward: list[str] = []
    gradients: list[str] = []
    handles = [
        module.register_forward_hook(
            partial(_watch, f"{name or 'model'} ({type(module).__name__})", forward, gradients)
        )
        for name, module in model.named_modules()
    ]
    try:
        backward()
    finally:
        for handle in handles:
            handle.remove()
    parameters = [
        f"the gradient of {name}" for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)
    ]
    return next(iter(forward + gradients + parameters), None)


def _watch(
    label: str, forward: list[str], gradients: list[str], module: nn.Module, inputs: object, output: object
) -> None:
    """Note the layer if its output is not finite, and later if the gradient of its output is not."""
    for tensor in _tensors(output):
        if not _finite(tensor):
            forward.append(f"the output of {label}")
        if tensor.requires_grad:
            tensor.register_hook(partial(_watch_gradient, label, gradients))


def _watch_gradient(label: str, gradients: list[str], gradient: Tensor) -> None:
    if not _finite(gradient):
        gradients.append(f"the gradient that reaches the output of {label}")


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple | list) else []


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(local_part(tensor.detach())).all())
