"""Monarch Mixer's sequence mixing: a gated long convolution in both directions (Fu et al. 2023,
https://arxiv.org/abs/2310.12109).

The input is projected three times, each projection passes a short convolution, and a long convolution runs between two
gates; a second one may bypass the gates, on the input itself.  Filters are implicit (longreach.mixers.implicit_filter):

    x_1, x_2, v = short_conv(x W_in + b_in)
    y = x_2 (h * (x_1 v) + D x_1 v)  [ + g * x + E x ]
    out = y W_out + b_out

Filters have two sides in the published encoders (M2-BERT): (h * v)_t = sum_j past_j v_{t-j} + sum_j future_j v_{t+1+j}.
With `causal` they have one, and the mixer can generate; without the second convolution it then is a Hyena operator of
order 2.  In the paper's view long convolutions are products with Monarch matrices; here they are FFTs.  The
other half of the system, the block-diagonal MLP, is longreach.models.BlockDiagonalMLP.

Axes: b batch, l length, d model width, c = 3 d projected channels, k taps of the short convolution.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.implicit_filter import FilterOptions, ImplicitFilter
from longreach.mixers.short_projection import project, short_weights, shorten
from longreach.ops.linear_channels import linear_from_channels
from longreach.ops.long_conv import long_conv
from longreach.ops.online_conv import (
    OnlineConvState,
    held_inputs,
    init_online_conv,
    online_conv_prefill,
    refuse_late_padding,
)
from longreach.ops.short_conv import short_conv_tail


class MonarchMixerState(NamedTuple):
    """The projections that the short convolution still needs, and the past of every long convolution."""

    tail: Float[Tensor, "b c {k-1}"]
    stages: tuple[OnlineConvState, ...]


class MonarchMixer(SequenceMixer[MonarchMixerState]):
    """The sequence mixer of M2; in parentheses the names in the published code.

    Args:
        d_model: width of the model.
        max_length: number of taps of the long filters and the longest sequence (l_max).  Filters measure time in this
            unit, so a model keeps the value that it was trained with.
        causal: whether a position sees only itself and what came before it; otherwise what follows too.
        residual_conv: add a second long convolution, of the input, after the gates (residual_long_conv).
        short_width: number of taps of the short convolution, which is causal even where the mixer is not.
        filter: the long filters, see FilterOptions.
        dropout: probability of dropping an element before the long convolution, and before the last linear map.
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        causal: bool = False,
        residual_conv: bool = True,
        short_width: int = 3,
        filter: FilterOptions = FilterOptions(),  # noqa: B008 (it is frozen)
        dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, causal=causal)
        if short_width < 1 or max_length < 1:
            raise InputError(f"{short_width=}, {max_length=}: at least 1 is needed")
        self.max_length, self.short_width = max_length, short_width
        self.projections = nn.Linear(d_model, 3 * d_model)
        self.short_weight, self.short_bias = short_weights(3 * d_model, short_width)
        self.filter = ImplicitFilter(d_model, n_filters=1, length=max_length, options=filter, two_sided=not causal)
        self.skip = nn.Parameter(torch.randn(d_model)) if filter.skip else None
        self.residual_filter, self.residual_skip = None, None
        if residual_conv:
            self.residual_filter = ImplicitFilter(
                d_model, n_filters=1, length=max_length, options=filter, two_sided=not causal
            )
            self.residual_skip = nn.Parameter(torch.randn(d_model)) if filter.skip else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(d_model, d_model)
        hints = {f"filter.{name}": hint for name, hint in self.filter.optim_hints().items()}
        self.optim_hints = hints | ({f"residual_{name}": hint for name, hint in hints.items()} if residual_conv else {})

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence, O(l d (log l + d))."""
        self.filter.refuse_longer(x.shape[1], "MonarchMixer")

        def convolve(
            u: Tensor,
            filter: ImplicitFilter,
            skip: Tensor | None,
            before: Tensor | None = None,
            after: Tensor | None = None,
        ) -> Tensor:
            (past,) = filter(u.shape[-1])
            future = None if self.causal else filter.future(u.shape[-1])[0]
            return long_conv(u, past, reverse_kernel=future, skip=skip, gate_before=before, gate_after=after)

        x_1, x_2, v = self._branches(project(x, self.projections.weight, self.projections.bias, mask), mask, None)
        y = convolve(self.dropout(v), self.filter, self.skip, x_1, x_2)
        if self.residual_filter is not None:
            y = y + convolve(_silent(x, mask).mT, self.residual_filter, self.residual_skip)
        return linear_from_channels(self.dropout(y), self.out.weight, self.out.bias)

    def init_state(self, batch_size: int) -> MonarchMixerState:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        weight = self.short_weight
        tail = weight.new_zeros(batch_size, weight.shape[0], self.short_width - 1)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        empty = init_online_conv(batch_size, self.d_model, dtype=dtype, device=weight.device)
        return MonarchMixerState(tail, (empty,) * (1 if self.residual_filter is None else 2))

    def step(self, x: Float[Tensor, "b d"], state: MonarchMixerState) -> tuple[Float[Tensor, "b d"], MonarchMixerState]:
        """Mix one position, O(d (d + log^2 t)) on average over the positions."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: MonarchMixerState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], MonarchMixerState]:
        """Mix a chunk, O(l d (log l + d)).  Padding may stand before the first real position of a row only."""
        if not self.causal:
            raise self._no_recurrent_view()
        past = held_inputs(state.stages[0])  # nothing is forgotten before `max_length`
        self.filter.refuse_longer(sum(block.shape[-1] for block in past) + x.shape[1], "MonarchMixer")
        if mask is not None:
            refuse_late_padding(mask, [state.tail, *past])
        projected, stages = project(x, self.projections.weight, self.projections.bias, mask), []

        def convolve(u: Tensor, filter: ImplicitFilter, skip: Tensor | None) -> Tensor:
            y, after = online_conv_prefill(u, state.stages[len(stages)], lambda count: filter(count)[0], filter.length)
            stages.append(after)
            return y if skip is None else y + skip[:, None] * u

        x_1, x_2, v = self._branches(projected, mask, state.tail)
        y = x_2 * convolve(x_1 * self.dropout(v), self.filter, self.skip)
        if self.residual_filter is not None:
            y = y + convolve(_silent(x, mask).mT, self.residual_filter, self.residual_skip)
        tail = short_conv_tail(projected, state.tail, self.short_width)
        return linear_from_channels(self.dropout(y), self.out.weight, self.out.bias), MonarchMixerState(
            tail, tuple(stages)
        )

    def _branches(
        self, projected: Float[Tensor, "b c l"], mask: Bool[Tensor, "b l"] | None, tail: Float[Tensor, "b c _"] | None
    ) -> tuple[Tensor, ...]:
        """The gates before and after the convolution, and what they gate."""
        return shorten(projected, self.short_weight, self.short_bias, mask, tail).chunk(3, dim=1)


def _silent(x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None) -> Float[Tensor, "b l d"]:
    """Zero at padding."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)
