"""RWKV-4, the time mixing (Peng et al. 2023, https://arxiv.org/abs/2305.13048).

Key, value and receptance see each channel of the input mixed with the position before; WKV averages the values with
weights that decay over time (longreach.ops.wkv), and the receptance gates the average:

    x^j_t = share_j x_t + (1 - share_j) x_{t-1}                       j = key, value, receptance
    k, v, r = W_key x^key, W_value x^value, W_receptance x^receptance
    y = W_out (sigmoid(r) wkv(k, v))                                  w = -exp(time_decay), u = time_first

The other half of the published block is longreach.mixers.RWKVChannelMix; longreach.models.RWKV stacks them.

Axes: b batch, l length, d channels.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.mixers.base import OptimHint, SequenceMixer
from longreach.mixers.constant_weights import of_weights
from longreach.mixers.rwkv_start import Place, orthogonal_linear, zero_linear
from longreach.ops.token_shift import token_shift
from longreach.ops.wkv import wkv, wkv_step
from longreach.ops.wkv_state import WKVState, init_wkv


class RWKV4State(NamedTuple):
    """The last input, and the sums of WKV."""

    last: Float[Tensor, "b d"]
    wkv: WKVState


class RWKV4(SequenceMixer[RWKV4State]):
    """Time mixing of RWKV-4: O(d^2) on a position, in training and in generation.

    Args:
        d_model: width of the model.
        layer: which layer of the stack this is, from 0; shares and decays start from values that depend on it.
        n_layers: number of layers in the stack.
    """

    keeps_its_start = True
    optim_hints = {
        "time_decay": OptimHint(lr_scale=2.0, weight_decay=False),
        "time_first": OptimHint(lr_scale=3.0, weight_decay=False),
    }

    def __init__(self, d_model: int, *, layer: int = 0, n_layers: int = 1) -> None:
        super().__init__(d_model, causal=True)
        place = Place(layer, n_layers)
        self.share_key = place.share(d_model)
        self.share_value = place.share(d_model, deep=0.3)
        self.share_receptance = place.share(d_model, power=0.5)
        self.time_decay = nn.Parameter(place.decay_speed(d_model, -5.0, 8.0, 0.7 + 1.3 * place.depth))
        self.time_first = nn.Parameter(math.log(0.3) + 0.5 * ((torch.arange(d_model) + 1) % 3 - 1))
        self.key = zero_linear(d_model, d_model)
        self.value = orthogonal_linear(d_model, d_model)
        self.receptance = zero_linear(d_model, d_model)
        self.out = zero_linear(d_model, d_model)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence, O(l d^2)."""
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> RWKV4State:
        """Zeros before the first position."""
        sums = init_wkv(batch_size, self.time_decay)
        return RWKV4State(torch.zeros_like(sums.numerator), sums)

    def step(self, x: Float[Tensor, "b d"], state: RWKV4State) -> tuple[Float[Tensor, "b d"], RWKV4State]:
        """Mix one position, O(d^2)."""
        key, value, receptance = self._branches(x, state.last.to(x.dtype))
        averages, sums = wkv_step(self._log_decay(), self.time_first, key, value, state.wkv)
        return self._finish(receptance, averages), RWKV4State(x.to(state.last.dtype, copy=True), sums)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKV4State, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKV4State]:
        """Mix a chunk, O(l d^2)."""
        previous, last = token_shift(x, state.last, mask)
        key, value, receptance = self._branches(x, previous)
        averages, sums = wkv(self._log_decay(), self.time_first, key, value, state.wkv, mask)
        return self._finish(receptance, averages), RWKV4State(last, sums)

    def _branches(self, x: Float[Tensor, "b *l d"], previous: Float[Tensor, "b *l d"]) -> tuple[Tensor, ...]:
        """Key, value and receptance."""
        key = self.key(torch.lerp(previous, x, self.share_key))
        value = self.value(torch.lerp(previous, x, self.share_value))
        return key, value, self.receptance(torch.lerp(previous, x, self.share_receptance)).sigmoid()

    def _finish(self, receptance: Float[Tensor, "b *l d"], averages: Float[Tensor, "b *l d"]) -> Tensor:
        return self.out(receptance * averages.to(receptance.dtype))

    @of_weights
    def _log_decay(self) -> Float[Tensor, " d"]:
        return -self.time_decay.exp()
