"""Where the RWKV layers start from: nearly all of it depends on the channel and on how deep in the stack a layer is.

    ratio_i = i / d        depth = layer / (n_layers - 1)        rest = 1 - layer / n_layers

Published: BlinkDL/RWKV-LM, the initialisations of versions 4, 5, 6 and 7.

Axes: d channels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longreach.errors import InputError


@dataclass(frozen=True)
class Place:
    """Layer `layer` (from 0) of `n_layers`."""

    layer: int
    n_layers: int

    def __post_init__(self) -> None:
        if not 0 <= self.layer < self.n_layers:
            raise InputError(f"layer={self.layer} must be from 0 to n_layers - 1 = {self.n_layers - 1}")

    @property
    def depth(self) -> float:
        """0 in the first layer, 1 in the last; the published formula divides by 0 where there is only one."""
        return self.layer / max(self.n_layers - 1, 1)

    @property
    def rest(self) -> float:
        """1 in the first layer, 1 / n_layers in the last."""
        return 1 - self.layer / self.n_layers

    def share(self, channels: int, power: float = 1.0, deep: float = 0.0) -> nn.Parameter:
        """How much of an input is the present one, the rest being the one before: ratio^(power rest) + deep depth."""
        ratio = torch.arange(channels, dtype=torch.float64) / channels
        return nn.Parameter((ratio ** (power * self.rest) + deep * self.depth).float())

    def decay_speed(self, channels: int, first: float, span: float, power: float) -> Float[Tensor, " d"]:
        """log(-log decay), from `first` in the first channel to `first + span` in the last, bent by `power`."""
        return first + span * spread(channels) ** power

    def bonus(self, channels: int) -> Float[Tensor, " d"]:
        """What versions 5 and 6 add for the present position."""
        zigzag = 0.1 * ((torch.arange(channels) + 1) % 3 - 1)
        return (self.depth * (1 - spread(channels)) + zigzag).float()


def spread(channels: int) -> Float[Tensor, " d"]:
    """From 0 in the first channel to 1 in the last."""
    return torch.arange(channels) / max(channels - 1, 1)


def orthogonal_linear(inputs: int, outputs: int, gain: float | None = None) -> nn.Linear:
    """A linear map without bias and with orthogonal weights; by default with the gain that keeps the norm of rows."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.orthogonal_(linear.weight, math.sqrt(max(outputs / inputs, 1)) if gain is None else gain)
    return linear


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without bias that starts at zero."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def uniform_linear(inputs: int, outputs: int, bound: float) -> nn.Linear:
    """A linear map without bias and with weights between -bound and bound."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear


def low_rank(channels: int, rank: int | None, factor: float) -> tuple[nn.Parameter, nn.Parameter]:
    """Two matrices (d, rank) and (rank, d) whose product starts at zero; None is about factor sqrt(d), as published."""
    if rank is None:
        rank = max(32, 32 * round(factor * channels**0.5 / 32))
    if rank < 1:
        raise InputError(f"a map of rank {rank} does nothing; every rank must be at least 1")
    up = nn.init.orthogonal_(torch.empty(rank, channels), gain=0.1 * math.sqrt(max(rank / channels, 1)))
    return nn.Parameter(torch.zeros(channels, rank)), nn.Parameter(up)
