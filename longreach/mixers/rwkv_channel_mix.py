"""The channel mixing of RWKV: a squared-ReLU network that also sees the position before.

    x^j_t = share_j x_t + (1 - share_j) x_{t-1}                       j = key, receptance
    y = sigmoid(W_receptance x^receptance) * W_value relu(W_key x^key)^2        version 7 has no gate

RWKV-4: https://arxiv.org/abs/2305.13048; 5 and 6: https://arxiv.org/abs/2404.05892; 7: https://arxiv.org/abs/2503.14456.
Since it remembers one position it is a sequence mixer, not a channel mixer of longreach.models.

Axes: b batch, l length, d channels.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.rwkv_start import Place, orthogonal_linear, uniform_linear, zero_linear
from longreach.ops.token_shift import token_shift


class RWKVChannelMixState(NamedTuple):
    """The last input."""

    last: Float[Tensor, "b d"]


class RWKVChannelMix(SequenceMixer[RWKVChannelMixState]):
    """Channel mixing of RWKV: O(d d_inner) on a position; looks back one position and no further.

    Args:
        d_model: width of the model.
        d_inner: width of the inner layer; None is 4 * d_model.
        gated: multiply with a receptance, as in versions 4 to 6; without it the network starts as in version 7.
        layer: which layer of the stack this is, from 0; the shares start from values that depend on it.
        n_layers: number of layers in the stack.
    """

    keeps_its_start = True

    def __init__(
        self, d_model: int, *, d_inner: int | None = None, gated: bool = True, layer: int = 0, n_layers: int = 1
    ) -> None:
        super().__init__(d_model, causal=True)
        inner = 4 * d_model if d_inner is None else d_inner
        if inner < 1:
            raise InputError(f"d_inner={d_inner} must be at least 1")
        place = Place(layer, n_layers)
        self.share_key = place.share(d_model, power=1.0 if gated else place.rest**3)
        self.value = zero_linear(inner, d_model)
        if gated:
            self.key = orthogonal_linear(d_model, inner)
            self.share_receptance = place.share(d_model)
            self.receptance = zero_linear(d_model, d_model)
        else:
            self.key = uniform_linear(d_model, inner, 0.5 * d_model**-0.5)
        self.gated = gated

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence, O(l d d_inner)."""
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> RWKVChannelMixState:
        """Zeros before the first position."""
        dtype = torch.promote_types(self.share_key.dtype, torch.float32)
        return RWKVChannelMixState(self.share_key.new_zeros(batch_size, self.d_model, dtype=dtype))

    def step(
        self, x: Float[Tensor, "b d"], state: RWKVChannelMixState
    ) -> tuple[Float[Tensor, "b d"], RWKVChannelMixState]:
        """Mix one position, O(d d_inner)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVChannelMixState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVChannelMixState]:
        """Mix a chunk, O(l d d_inner)."""
        previous, last = token_shift(x, state.last, mask)
        y = self.value(F.relu(self.key(torch.lerp(previous, x, self.share_key))).square())
        if self.gated:
            y = self.receptance(torch.lerp(previous, x, self.share_receptance)).sigmoid() * y
        return y, RWKVChannelMixState(last)
