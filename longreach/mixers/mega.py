"""Mega, moving averages and gated attention (Ma et al. 2022, https://arxiv.org/abs/2209.10655).

    m = moving_average(norm x)                                   longreach.mixers.moving_average
    update, [z, reset], candidate = sigmoid(m W_u), silu(m W_zr), m W_h
    q, k = query_scale z + query_shift, key_scale z + key_shift  one head, narrow: a channels
    v = act(norm x W_v)                                          wide: e channels
    h = act(candidate + (attention(q, k, v) * reset) W_o)
    y = update * (h - x)                                         so that x + y leads from x to h

The attention (longreach.ops.relative_attention) has a bias for every distance t, b_t or <alpha, R^t beta> with R the
rotary turn by one position, and sees the whole sequence or a chunk of it: positions 0 .. c-1, c .. 2c-1, and so on.
Averages cross the borders of chunks, so that training costs O(l c), and the state is bounded.

The gate needs x as it is, therefore the norm of a pre-norm model is inside the mixer (`MegaOptions.norm`).

Axes: b batch, l length, d model width, a query and key width, e value width, m keys, k chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import draw_seed
from longreach.mixers.moving_average import MovingAverage, MovingAverageState
from longreach.mixers.norms import Norm, apply_norm, make_norm
from longreach.ops.chunk_attention import ChunkRule, attend_in_chunks, attend_in_next_chunks
from longreach.ops.key_value_cache import KeyValueCache, empty_cache
from longreach.ops.relative_attention import Weighting
from longreach.ops.rotary import rotary

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh", "identity"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


@dataclass(frozen=True)
class MegaOptions:
    """The less common choices; in parentheses the published names.

    Attributes:
        activation: of the values and of the candidate (activation).
        kernel_length: number of taps of the moving average; what is longer ago reaches a position through the attention
            or through other layers only.  None is no limit (truncation).
        norm: the norm of the input, which makes a layer of a pre-norm model; None for post-norm, where the backbone has
            the norm (norm_type, prenorm).
        norm_affine: whether that norm has weights (norm_affine).
        dropout: probability of dropping an element of the moving average and of the candidate (dropout).
        attention_dropout: probability of dropping an attention weight (attention_dropout).
        value_dropout: probability of dropping an element of the values (hidden_dropout).
        feature_dropout: let `dropout` and `value_dropout` drop whole channels of a sequence (feature_dropout).
    """

    activation: Activation = "silu"
    kernel_length: int | None = None
    norm: Norm | None = "layer"
    norm_affine: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    value_dropout: float = 0.0
    feature_dropout: bool = False


class MegaState(NamedTuple):
    """All that later outputs depend on."""

    average: MovingAverageState
    cache: KeyValueCache
    """Keys and values of the whole past, or of the present chunk."""


class Mega(SequenceMixer[MegaState]):
    """Moving averages and gated attention, O(l (c + log l)) in chunks of c; in parentheses the published names.

    Args:
        d_model: width of the model (embed_dim).
        d_value: width of the values (hdim), 2 d_model by default.
        d_key: width of queries and keys (zdim).
        d_state: moving averages of a channel (ndim).
        chunk_size: positions that attend to each other; None for all (chunk_size -1).
        weighting: `softmax`, `relu2` or `laplace`, see longreach.ops.relative_attention (attention_activation).
        position: the bias of a distance: a parameter (`simple`) or made by rotation (`rotary`) (rel_pos_bias).
        max_length: the longest sequence, where a `simple` bias and no chunks need one (max_positions).
        causal: whether a position sees only itself and what came before it (not bidirectional).
        options: the less common choices.
    """

    keeps_its_start = True

    def __init__(
        self,
        d_model: int,
        *,
        d_value: int | None = None,
        d_key: int = 64,
        d_state: int = 16,
        chunk_size: int | None = 128,
        weighting: Weighting = "softmax",
        position: Literal["simple", "rotary"] = "simple",
        max_length: int | None = None,
        causal: bool = True,
        options: MegaOptions = MegaOptions(),
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.d_key, self.d_value = d_key, 2 * d_model if d_value is None else d_value
        self.chunk_size, self.position, self.max_length = chunk_size, position, max_length
        self.weighting: Weighting = weighting
        self.options = options
        self._check()
        self.normalises_itself = options.norm is not None
        self.norm = None
        if options.norm is not None:
            self.norm = make_norm(options.norm, d_model, affine=options.norm_affine)
        self.average = MovingAverage(d_model, d_state=d_state, causal=causal, kernel_length=options.kernel_length)
        self.value = nn.Linear(d_model, self.d_value)
        self.base = nn.Linear(d_model, sum(self._widths()))
        self.out = nn.Linear(self.d_value, d_model)
        for linear in (self.value, self.base, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.scale = nn.Parameter(0.02 * torch.randn(2, d_key))
        self.shift = nn.Parameter(torch.zeros(2, d_key))
        n_positions = chunk_size if max_length is None else max_length
        shape = (2, d_key) if position == "rotary" else (2 * (n_positions or 0) - 1,)
        self.bias = nn.Parameter(0.02 * torch.randn(shape))

    def _check(self) -> None:
        sizes = {name: getattr(self, name) for name in ("chunk_size", "d_key", "d_value", "max_length")}
        if any(size is not None and size < 1 for size in sizes.values()):
            raise InputError(f"{sizes} must be at least 1")
        limited = self.position == "simple" and self.chunk_size is None
        if limited != (self.max_length is not None):
            raise InputError(
                f"max_length={self.max_length} with position={self.position!r} and chunk_size={self.chunk_size}: a "
                "simple bias without chunks needs max_length; a rotary one, or chunks, have no limit and take None"
            )
        if self.position == "rotary" and self.d_key % 2:
            raise InputError(f"rotary turns pairs, so d_key={self.d_key} must be even")

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence."""
        self._check_length(x.shape[1])
        normed = self._normalise(x, mask)
        query, key, value, finish = self._gates(x, normed, self.average(normed, mask))
        return finish(attend_in_chunks(query, key, value, self._rule(x.device), mask))

    def init_state(self, batch_size: int) -> MegaState:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        empty = self.shift.new_zeros(batch_size, 1, 0, self.d_key)
        return MegaState(
            self.average.init_state(batch_size), empty_cache(empty, empty.new_zeros(batch_size, 1, 0, self.d_value))
        )

    def step(self, x: Float[Tensor, "b d"], state: MegaState) -> tuple[Float[Tensor, "b d"], MegaState]:
        """Advance the averages and attend from one new position, O(d (d + n + c))."""
        if not self.causal:
            raise self._no_recurrent_view()
        normed = self._normalise(x, None)
        averaged, average = self.average.step(normed, state.average)
        y, cache = self._attend_next(x[:, None], normed[:, None], averaged[:, None], state.cache, None)
        return y[:, 0], MegaState(average, cache)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: MegaState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], MegaState]:
        """Mix a chunk of any length that continues from `state`."""
        if not self.causal:
            raise self._no_recurrent_view()
        normed = self._normalise(x, mask)
        averaged, average = self.average.prefill(normed, state.average, mask)
        y, cache = self._attend_next(x, normed, averaged, state.cache, mask)
        return y, MegaState(average, cache)

    def _attend_next(
        self, x: Tensor, normed: Tensor, averaged: Tensor, cache: KeyValueCache, mask: Tensor | None
    ) -> tuple[Tensor, KeyValueCache]:
        """Everything behind the moving average, for what comes after `cache`."""
        self._check_length(sum(part.size for part in (*cache.blocks, cache.tail)) + x.shape[1])
        query, key, value, finish = self._gates(x, normed, averaged)
        attended, cache = attend_in_next_chunks(query, key, value, self._rule(x.device), cache, mask)
        return finish(attended), cache

    def _normalise(self, x: Float[Tensor, "b *l d"], mask: Bool[Tensor, "b *l"] | None) -> Float[Tensor, "b *l d"]:
        return x if self.norm is None else apply_norm(self.norm, x, mask)

    def _widths(self) -> tuple[int, ...]:
        """Of what is made from the moving average: update, z, reset, candidate."""
        return self.d_model, self.d_key, self.d_value, self.d_model

    def _gates(
        self, x: Float[Tensor, "b l d"], normed: Float[Tensor, "b l d"], averaged: Float[Tensor, "b l d"]
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Queries, keys, values, and the map from what the attention gives to the output."""
        activation, options = ACTIVATIONS[self.options.activation], self.options
        base = self.base(self._drop(averaged, options.dropout))
        update, z, reset, candidate = base.split(self._widths(), dim=-1)
        query, key = (F.silu(z)[..., None, :] * self.scale + self.shift).unbind(-2)
        if self.weighting == "softmax":
            query = query * self.d_key**-0.5
        value = self._drop(activation(self.value(normed)), options.value_dropout)

        def finish(attended: Tensor) -> Tensor:
            h = activation(candidate + self.out(attended * F.silu(reset)))
            return update.sigmoid() * (self._drop(h, options.dropout) - x)

        return query, key, value, finish

    def _drop(self, x: Float[Tensor, "b l d"], probability: float) -> Float[Tensor, "b l d"]:
        if self.options.feature_dropout:
            return F.dropout1d(x.mT, probability, self.training).mT
        return F.dropout(x, probability, self.training)

    def _rule(self, device: torch.device) -> ChunkRule:
        dropout = self.options.attention_dropout if self.training else 0.0
        seed = draw_seed(dropout, device)
        return ChunkRule(self.chunk_size, self.causal, self.weighting, self._bias, dropout, seed)

    def _bias(self, length: int) -> Float[Tensor, " r"]:
        """The bias of all distances of less than `length` positions: s - p = -(length - 1) .. length - 1, or more."""
        if self.position == "simple":
            return self.bias
        distance = torch.arange(1 - length, length, device=self.bias.device)
        alpha, beta = self.bias
        return (rotary(beta.expand(1, 1, len(distance), -1), distance)[0, 0] * alpha).sum(-1)
