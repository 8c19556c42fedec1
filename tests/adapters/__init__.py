"""Adapters between published code and ours: one module for each family of golden files, named as the family.

A module defines `adapt(config, metadata) -> Published | Declined`, where `config` holds the published constructor's
arguments.  It implements options, not files: any case of the same format works, or is declined with a reason.
The adapters are the only place that knows the published names; tests/test_golden.py says how they are used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Tensors = Mapping[str, Tensor]


def output_only(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
    """The simplest `run`: the module maps "input" to "output"."""
    return {"output": module(tensors["input"])}


@dataclass(frozen=True)
class Published:
    """What of ours should equal a published thing.

    Attributes:
        module: ours, of any weights; the test makes it float64 and puts it into eval mode.
        weights: the file's `param/...` tensors, by published name -> the state of `module`, complete.  Differentiable:
            the gradients in the file are compared with those that flow through this function.
        run: (`module` with those weights, all tensors of the file) -> results by the name that they have in the file.
            Everything in the file must be read by `weights` or `run`, or be a result, or be listed below.
        tied: published name -> the published name under which `weights` reads the same tensor.
        unchecked: name in the file -> why it is neither read nor compared.
    """

    module: nn.Module
    weights: Callable[[Tensors], dict[str, Tensor]]
    run: Callable[[Any, Tensors], dict[str, Tensor]] = output_only
    tied: Mapping[str, str] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Declined:
    """A published option that we deliberately do not offer."""

    reason: str
