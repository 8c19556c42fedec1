"""What happened when a loss or a gradient is no longer finite: which layer went wrong first."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longreach.training.processes import local_part


class DivergenceError(RuntimeError):
    """The loss or a gradient is infinite or not a number; the message names the step and the layer."""


class Fault(NamedTuple):
    """Something that is not finite.  Faults sort by where they arise: the first explains those that follow."""

    stage: int
    """0 weights, 1 outputs in the forward pass, 2 gradients of outputs in the backward pass, 3 those of parameters,
    4 norms of those."""
    place: str
    """In words."""


def first_fault(model: nn.Module, backward: Callable[[], object]) -> Fault | None:
    """Repeat the forward and backward pass that failed, watching every layer; what was the first to go wrong, or None.

    `backward` runs both passes.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return Fault(0, f"the weight {name}")
    faults: list[Fault] = []
    handles = [
        module.register_forward_hook(partial(_watch, f"{name or 'model'} ({type(module).__name__})", faults))
        for name, module in model.named_modules()
    ]
    try:
        backward()
    finally:
        for handle in handles:
            handle.remove()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    faults += [Fault(3, f"the gradient of {name}") for name, gradient in gradients.items() if not _finite(gradient)]
    faults += [
        Fault(4, f"the norm of the gradient of {name}, whose numbers are finite and too large")
        for name, gradient in gradients.items()
        if not _finite(local_part(gradient).norm())
    ]
    return next(iter(faults), None)


def _watch(label: str, faults: list[Fault], module: nn.Module, inputs: object, output: object) -> None:
    """Note the layer if its output is not finite, and later if the gradient of its output is not."""
    for tensor in _tensors(output):
        if not _finite(tensor):
            faults.append(Fault(1, f"the output of {label}"))
        if tensor.requires_grad:
            tensor.register_hook(partial(_watch_gradient, label, faults))


def _watch_gradient(label: str, faults: list[Fault], gradient: Tensor) -> None:
    if not _finite(gradient):
        faults.append(Fault(2, f"the gradient that reaches the output of {label}"))


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple | list) else []


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(local_part(tensor.detach())).all())
