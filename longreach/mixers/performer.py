"""The Performer (Choromanski et al. 2020, https://arxiv.org/abs/2009.14794): attention by random features.

    q, k, v = split(x W_in)
    y_t     = sum_s (phi(q_t) . phi(k_s)) v_s / sum_s phi(q_t) . phi(k_s)        s <= t if causal, else all s

The kernels `positive` and `trigonometric` estimate softmax attention (longreach.ops.random_features); their features
are factor * exp(exponent), kept in range by shifts.  Other kernels have phi(x) = fn(W x), or fn(x) without directions
W.  A floor keeps weights from vanishing:

    phi(q_t) = factor_t exp(exponent_t - level_t) + floor
    phi(k_s) = factor_s exp(exponent_s - M_t) + floor        M_t the greatest level of the keys that position t may see

A growing M shrinks the features but not the floor, so they are summed apart.  The state is M, the sum over the past of
factor exp(exponent - M) (v, 1) for every feature, and the sum of (v, 1), which the floor multiplies.

Axes: b batch, l length, d model width, h heads, e head width, n features and the floor, f = e + 1: the value and a one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import Heads, widened
from longreach.ops.linear_attention import linear_attention
from longreach.ops.random_features import (
    Directions,
    Features,
    positive_features,
    random_directions,
    trigonometric_features,
)

Kernel = Literal[
    "positive",
    "trigonometric",
    "relu",
    "squared_relu",
    "elu",
    "gelu",
    "exp",
    "sigmoid",
    "tanh",
    "cos",
    "sin",
    "identity",
]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "elu": lambda x: F.elu(x) + 1,
    "gelu": F.gelu,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "cos": torch.cos,
    "sin": torch.sin,
    "identity": lambda x: x,
}
"""fn of the kernels that do not estimate softmax."""

NOTHING = -1e30
"""The level of no key at all; finite, so that its difference from itself is zero."""


@dataclass(frozen=True)
class PerformerOptions:
    """The less common choices.

    Attributes:
        floor: added to every feature, of positive ones before they are divided by the root of their number;
            trigonometric ones have none.  The published code has 1e-6 for positive features and 1e-3 for other kernels.
        least_sum: a sum of weights that is not larger than this is raised by twice this.
        normalise: divide by the sum of the weights.
    """

    floor: float = 1e-6
    least_sum: float = 1e-6
    normalise: bool = True


class PerformerState(NamedTuple):
    """All that later outputs depend on."""

    sums: Float[Tensor, "b h n f"]
    """Sums over the past of the features, and of one, times (v, 1)."""
    level: Float[Tensor, "b h"]
    """M."""


class Performer(SequenceMixer[PerformerState]):
    """Linear-time attention by (random) features: O(l n d) on a sequence, O(n d) on a step.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        causal: whether a position sees only itself and what came before it.
        kernel: `positive` and `trigonometric` estimate softmax attention; the others are kernels of their own.
        directions: how W is drawn, once, into a buffer (see `redraw`); `none` does without.
        n_directions: rows of W; None is e log e, rounded up, as the paper's theory asks for.
        bias: whether the projections have biases.
        options: the less common choices.
    """

    W: Tensor | None

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        causal: bool = True,
        kernel: Kernel = "positive",
        directions: Directions | Literal["none"] = "orthogonal",
        n_directions: int | None = None,
        bias: bool = False,
        options: PerformerOptions = PerformerOptions(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.heads = Heads(d_model, n_heads, head_dim, bias=bias)
        self.kernel, self.options = kernel, options
        self.directions: Directions | Literal["none"] = directions
        if directions == "none" and (kernel not in FUNCTIONS or n_directions is not None):
            raise InputError(
                f"{kernel=} with {n_directions=} needs random directions, but directions='none' draws none"
            )
        if n_directions is not None and n_directions < 1:
            raise InputError(f"n_directions={n_directions} must be at least 1, or None for a number that fits head_dim")
        if min(options.floor, options.least_sum) < 0:
            raise InputError(f"floor={options.floor} and least_sum={options.least_sum} must not be negative")
        width = self.heads.head_dim
        count = math.ceil(width * math.log(width)) or 1 if n_directions is None else n_directions
        self.register_buffer("W", None if directions == "none" else random_directions(count, width, directions))
        self.floor = {"positive": options.floor / count**0.5, "trigonometric": 0.0}.get(kernel, options.floor)
        self.n_features = width if directions == "none" else 2 * count if kernel == "trigonometric" else count

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw other random directions, as the paper suggests to do now and then in training.

        A generator that is seeded from the number of the step makes a resumed run draw the same.  Raises InputError
        where there are no random directions.
        """
        if self.W is None or self.directions == "none":
            raise InputError("directions='none' leaves nothing to draw again; build the mixer with random directions")
        count, width = self.W.shape
        self.W.copy_(random_directions(count, width, self.directions, generator))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence, O(l n d)."""
        return self._attend(x, self._nothing_read(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> PerformerState:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        return self._nothing_read(batch_size)

    def step(self, x: Float[Tensor, "b d"], state: PerformerState) -> tuple[Float[Tensor, "b d"], PerformerState]:
        """Mix one position, O(n d)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: PerformerState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], PerformerState]:
        """Mix a chunk, O(l n d)."""
        if not self.causal:
            raise self._no_recurrent_view()
        return self._attend(x, state, mask)

    def _nothing_read(self, batch_size: int) -> PerformerState:
        heads = self.heads
        sums = widened(heads.out.weight).new_zeros(batch_size, heads.n_heads, self.n_features + 1, heads.head_dim + 1)
        return PerformerState(sums, sums.new_full(sums.shape[:2], NOTHING))

    def _features(self, x: Tensor) -> Features:
        """The features of queries or keys, without shift and floor."""
        if self.kernel in FUNCTIONS:
            with torch.autocast(x.device.type, enabled=False):
                factor = FUNCTIONS[self.kernel](x if self.W is None else x @ self.W.mT.to(x.dtype))
            return Features(factor, factor.new_zeros(1), torch.zeros_like(x[..., 0]))
        assert self.W is not None
        estimate = positive_features if self.kernel == "positive" else trigonometric_features
        return estimate(x * x.shape[-1] ** -0.25, self.W)

    def _greatest(self, level: Float[Tensor, "b h l"], before: Float[Tensor, "b h"]) -> Float[Tensor, "b h l"]:
        """M_t, from the levels of the keys."""
        greatest = level.cummax(-1).values if self.causal else level.amax(-1, keepdim=True).expand_as(level)
        return torch.maximum(greatest, before[..., None])

    def _attend(self, x: Tensor, state: PerformerState, mask: Tensor | None) -> tuple[Tensor, PerformerState]:
        """The outputs, and the state after them."""
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)  # of what padding holds, no features that overflow
        query, key, value = (widened(projected) for projected in self.heads.split(x))
        queries, (factor, exponent, level) = self._features(query), self._features(key)
        real = torch.ones_like(level) if mask is None else mask[:, None].expand_as(level).to(level.dtype)
        if mask is not None:
            exponent = exponent.masked_fill(~mask[:, None, :, None], -torch.inf)
            level = level.masked_fill(~mask[:, None], NOTHING)
        greatest = self._greatest(level, state.level)
        shift = greatest[..., -1:].detach()  # the same for all positions; it cancels, but for the floor
        relative = (greatest - shift).exp()[..., None]  # what the floor shrinks by from M_t to the shift
        phi_key = torch.cat([factor * (exponent - shift[..., None]).exp(), real[..., None]], dim=-1)
        phi_query = queries.factor * (queries.exponent - queries.level[..., None]).exp() + self.floor
        phi_query = torch.cat([phi_query, self.floor * relative * phi_query.sum(-1, keepdim=True)], dim=-1)
        growth = F.pad(
            (state.level[..., None].detach() - shift).exp().expand(-1, -1, self.n_features), (0, 1), value=1.0
        )
        value = F.pad(value, (0, 1), value=1.0)
        y, sums = linear_attention(phi_query, phi_key, value, state.sums * growth[..., None], causal=self.causal)
        y = self._divide(y[..., :-1], y[..., -1:], relative)
        return self.heads.join(y.to(x.dtype)), PerformerState(sums, greatest[..., -1].clone())

    def _divide(self, y: Tensor, total: Tensor, relative: Tensor) -> Tensor:
        """By the sum of the weights; both were made with features that are `relative` times what they should be.

        That is zero only where nothing but padding was seen.
        """
        if not self.options.normalise:
            return y / relative.masked_fill(relative == 0, 1.0)
        least = self.options.least_sum * relative
        total = torch.where(total.abs() <= least, total + 2 * least, total)
        return y / total.masked_fill(total == 0, 1.0)
