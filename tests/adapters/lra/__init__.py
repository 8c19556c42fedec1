"""The parts of the adapter lra_attention, and what they share: the layout of published attention parameters.

A table maps a name in the metadata's "source" to `adapt(config, metadata) -> Published | Declined`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Declined, Published, Tensors

Table = dict[str, Callable[[dict[str, Any], dict[str, str]], Published | Declined]]


def projection(theirs: Tensors, *names: str) -> Tensor:
    """The weight of our linear map for published kernels (d, h, e): their heads one after the other."""
    return torch.cat([theirs[f"{name}.kernel"].flatten(1).mT for name in names])


def merging(theirs: Tensors, name: str = "out") -> Tensor:
    """The weight of our linear map for the published kernel (h, e, d) after attention."""
    return theirs[f"{name}.kernel"].flatten(0, 1).mT


def real_positions(tensors: Tensors) -> Tensor | None:
    """Where there is no padding, or None if a file has none."""
    return tensors["padding_mask_valid"].bool() if "padding_mask_valid" in tensors else None


def output_at_real_positions(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
    """A `run`: ours where the input is real; at padding, where the files say not to compare, what they hold."""
    mask = real_positions(tensors)
    y = module(tensors["input"], mask)
    return {"output": y if mask is None else torch.where(mask[..., None], y, tensors["output"])}
