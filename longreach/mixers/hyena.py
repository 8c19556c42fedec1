"""Hyena, long convolutions between gates (Poli et al. 2023, https://arxiv.org/abs/2302.10866).

An operator of order N projects its input N + 1 times, passes each projection through a short convolution, and then
alternates gates with long convolutions whose filters h_1 .. h_{N-1} are implicit (longreach.mixers.implicit_filter):

    x_0, ..., x_{N-1}, v = short_conv(x W_in + b_in)
    v <- h_s * (x_{N-s} v) + D_s x_{N-s} v                 s = 1 .. N - 1
    y = act(x_0 v) W_out + b_out

Training costs O(N l (d log l + d^2)) operations.  Generation is exact too: the long convolutions are carried on as the
input arrives (longreach.ops.online_conv), O(log^2 t) operations a channel for the t-th token, with O(t) memory.

Axes: b batch, l length, d model width, c = (N + 1) d projected channels, k taps of the short convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.constant_weights import of_weights
from longreach.mixers.implicit_filter import FilterOptions, ImplicitFilter
from longreach.mixers.short_projection import project, short_weights, shorten
from longreach.ops.filter_step import filter_step
from longreach.ops.linear_channels import linear_from_channels
from longreach.ops.long_conv import long_conv
from longreach.ops.online_conv import (
    OnlineConvState,
    held_inputs,
    init_online_conv,
    online_conv_prefill,
    online_conv_step,
    refuse_late_padding,
)
from longreach.ops.piecewise import piecewise
from longreach.ops.short_conv import short_conv_tail

WHOLE, PIECES = 2**17, 16
"""Longer sequences are mixed so many parts of the channels one after the other, and again for the gradient: what lies
between the input of a Hyena and its output is many times as large as they are."""

Activation = Literal["identity", "gelu", "relu", "elu", "silu", "tanh", "sigmoid", "squared_relu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "elu": F.elu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "squared_relu": lambda x: F.relu(x).square(),
}


class HyenaState(NamedTuple):
    """The projections that the short convolution still needs, and the past of every long convolution."""

    tail: Float[Tensor, "b c {k-1}"]
    stages: tuple[OnlineConvState, ...]


class Hyena(SequenceMixer[HyenaState]):
    """The Hyena operator; in parentheses the names in the published code.

    Args:
        d_model: width of the model.
        max_length: number of taps of the long filters and the longest sequence (l_max).  Filters measure time in this
            unit, so a model keeps the value that it was trained with.
        order: number of gates; there are order - 1 long convolutions (order).
        short_width: number of taps of the short convolution (short_filter_order).
        filter: the long filters, see FilterOptions.
        activation: what follows the last gate (activation).
        outer_mixing: gate with the sum of a projection over all channels (outer_mixing).
        stage_scale: a learned factor after every long convolution (post_order_ffn).
        dropout: probability of dropping an element that enters a long convolution (dropout).
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        order: int = 2,
        short_width: int = 3,
        filter: FilterOptions = FilterOptions(),  # noqa: B008 (it is frozen)
        activation: Activation = "identity",
        outer_mixing: bool = False,
        stage_scale: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, causal=True)
        if order < 2 or short_width < 1 or max_length < 1:
            raise InputError(f"{order=}, {short_width=}, {max_length=}: at least 2, 1 and 1 are needed")
        self.order, self.max_length, self.short_width = order, max_length, short_width
        self.activation, self.outer_mixing = activation, outer_mixing
        self.projections = nn.Linear(d_model, (order + 1) * d_model)
        self.short_weight, self.short_bias = short_weights(self.projections.out_features, short_width)
        self.filter = ImplicitFilter(d_model, n_filters=order - 1, length=max_length, options=filter)
        self.skip = nn.Parameter(torch.randn(order - 1, d_model)) if filter.skip else None
        self.stage_scale = nn.Parameter(torch.randn(order - 1) / d_model**0.5) if stage_scale else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_model, d_model)
        self.optim_hints = {f"filter.{name}": hint for name, hint in self.filter.optim_hints().items()}

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence, O(order l d (log l + d))."""
        length = x.shape[1]
        self.filter.refuse_longer(length, "Hyena")
        maps = self.projections.weight, self.projections.bias, self.short_weight, self.short_bias
        by_channel = [parameter.unflatten(0, (self.order + 1, -1)) for parameter in maps]
        by_channel += [x for x in (self._kernels(length), self._skips()) if x is not None]

        def mix(weight: Tensor, bias: Tensor, taps: Tensor, offset: Tensor, kernels: Tensor, *rest: Tensor) -> Tensor:
            """Some channels, from their projections on to their last gate."""
            *skips, x = rest

            def convolve(stage: int, v: Tensor, before: Tensor, after: Tensor | None) -> Tensor:
                skip = skips[0][stage] if skips else None
                return long_conv(v, kernels[stage], skip=skip, gate_before=before, gate_after=after)

            projected = project(x, weight.flatten(0, 1), bias.flatten(), mask)
            return self._alternate(shorten(projected, taps.flatten(0, 1), offset.flatten(), mask, None), convolve)

        at_once = self.d_model if length <= WHOLE or self.outer_mixing else max(1, self.d_model // PIECES)
        return self._output(piecewise(mix, by_channel, [], at_once, whole=[x]))

    def init_state(self, batch_size: int) -> HyenaState:
        """Nothing has been read."""
        weight = self.short_weight
        tail = weight.new_zeros(batch_size, weight.shape[0], self.short_width - 1)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        empty = init_online_conv(batch_size, self.d_model, dtype=dtype, device=weight.device)
        return HyenaState(tail, (empty,) * (self.order - 1))

    def step(self, x: Float[Tensor, "b d"], state: HyenaState) -> tuple[Float[Tensor, "b d"], HyenaState]:
        """Mix one position, O(order d (d + log^2 t)) on average over the positions."""
        self.filter.refuse_longer(1 + sum(block.shape[-1] for block in held_inputs(state.stages[0])), "Hyena")
        projected = F.linear(x, self.projections.weight, self.projections.bias).to(state.tail.dtype)
        branches, tail = filter_step(projected, state.tail, self._short_taps(), self.short_width - 1, self.short_bias)
        skips, stages, taps = self._skips(), list(state.stages), self._taps()

        def convolve(stage: int, v: Tensor, before: Tensor, after: Tensor | None) -> Tensor:
            v = before * v
            y, stages[stage] = online_conv_step(v, stages[stage], partial(taps, stage), self.filter.length)
            if skips is not None:
                y = torch.addcmul(y, skips[stage], v)
            return y if after is None else after * y

        y = self._alternate(branches.to(x.dtype), convolve)
        return F.linear(y, self.out.weight, self.out.bias), HyenaState(tail, tuple(stages))

    def prefill(
        self, x: Float[Tensor, "b l d"], state: HyenaState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], HyenaState]:
        """Mix a chunk, O(order l d (log l + d)).  Padding may stand before the first real position of a row only."""
        past = held_inputs(state.stages[0])  # nothing is forgotten before `max_length`
        self.filter.refuse_longer(sum(block.shape[-1] for block in past) + x.shape[1], "Hyena")
        if mask is not None:
            refuse_late_padding(mask, [state.tail, *past])
        skips, stages, taps = self._skips(), list(state.stages), self._taps()

        def convolve(stage: int, v: Tensor, before: Tensor, after: Tensor | None) -> Tensor:
            v = before * v
            y, stages[stage] = online_conv_prefill(v, stages[stage], partial(taps, stage), self.filter.length)
            if skips is not None:
                y = y + skips[stage][:, None] * v
            return y if after is None else after * y

        projected = project(x, self.projections.weight, self.projections.bias, mask)
        branches = shorten(projected, self.short_weight, self.short_bias, mask, state.tail)
        y = self._output(self._alternate(branches, convolve))
        tail = short_conv_tail(projected, state.tail, self.short_width)
        return y, HyenaState(tail, tuple(stages))

    @of_weights
    def _kernels(self, count: int) -> Float[Tensor, "o d {count}"]:
        """The first taps of the long filters, with their factor."""
        kernels = self.filter(count)
        return kernels if self.stage_scale is None else self.stage_scale[:, None, None] * kernels

    def _taps(self) -> Callable[[int, int], Tensor]:
        """(stage, count) -> the first taps of its filter; those of all stages are made together, once."""
        kernels: dict[int, Tensor] = {}

        def taps(stage: int, count: int) -> Tensor:
            if count not in kernels:
                kernels[count] = self._kernels(count)
            return kernels[count][stage]

        return taps

    @of_weights
    def _short_taps(self) -> Float[Tensor, "c k"]:
        """The taps of the short convolution, backwards in time."""
        return self.short_weight.flip(-1)

    def _skips(self) -> Float[Tensor, "o d"] | None:
        """The direct path past every long convolution, with its factor."""
        return self.skip if self.skip is None or self.stage_scale is None else self.stage_scale[:, None] * self.skip

    def _alternate(self, branches: Float[Tensor, "b c *l"], convolve: Callable[..., Tensor]) -> Float[Tensor, "b _ *l"]:
        """Gates and long convolutions in turn."""
        *gates, v = branches.chunk(self.order + 1, dim=1)
        for stage in range(self.order - 1):
            before = gates[-1 - stage]
            if self.outer_mixing:
                before = before.sum(dim=1, keepdim=True).expand_as(v)
            after = gates[0] if stage == self.order - 2 else None
            v = convolve(stage, self.dropout(v), before, after)
        return ACTIVATIONS[self.activation](v)

    def _output(self, y: Float[Tensor, "b d l"]) -> Float[Tensor, "b l d"]:
        return linear_from_channels(y, self.out.weight, self.out.bias)
