"""RWKV-5 (Eagle), the time mixing (Peng et al. 2024, https://arxiv.org/abs/2404.05892), version 5.2.

RWKV-4 with a matrix in each head where that has two sums, linear attention whose memory decays channel by channel
(longreach.ops.gated_linear_attention), and with a gate:

    x^j_t = share_j x_t + (1 - share_j) x_{t-1}                       j = key, value, receptance, gate
    o_t = r_t^T (S_{t-1} + diag(u) k_t v_t^T),    S_t = diag(w) S_{t-1} + k_t v_t^T        w = exp(-exp(time_decay))
    y = W_out (group_norm(o / divisor) * silu(W_gate x^gate))         u = bonus

Axes: b batch, l length, d channels, h heads, n channels of a head.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.mixers.base import OptimHint
from longreach.mixers.constant_weights import of_weights
from longreach.mixers.heads import join_heads
from longreach.mixers.rwkv_memory import RWKVMemory, RWKVState
from longreach.mixers.rwkv_start import Place, orthogonal_linear, zero_linear
from longreach.ops.gated_linear_attention import gated_linear_attention
from longreach.ops.memory_step import memory_step
from longreach.ops.token_shift import token_shift


class RWKV5(RWKVMemory):
    """Time mixing of RWKV-5: O(d (d + head_dim)) on a position, in training and in generation.

    Args:
        d_model: width of the model.
        d_attention: width inside; None is `d_model`.
        head_dim: number of channels of a head.
        divisor: divides the outputs before they are normalised.
        layer: which layer of the stack this is, from 0; shares, decays and more start from values that depend on it.
        n_layers: number of layers in the stack.
    """

    optim_hints = {
        "time_decay": OptimHint(lr_scale=2.0, weight_decay=False),
        "bonus": OptimHint(weight_decay=False),
    }

    def __init__(
        self,
        d_model: int,
        *,
        d_attention: int | None = None,
        head_dim: int = 64,
        divisor: float = 8.0,
        layer: int = 0,
        n_layers: int = 1,
    ) -> None:
        width = d_model if d_attention is None else d_attention
        super().__init__(d_model, width, head_dim)
        self.divisor = divisor
        place = Place(layer, n_layers)
        self.share_key = place.share(d_model)
        self.share_value = place.share(d_model, deep=0.3)
        self.share_receptance = place.share(d_model, power=0.5)
        self.share_gate = place.share(d_model, power=0.5)
        speed = place.decay_speed(width, -6.0, 5.0, 0.7 + 1.3 * place.depth)
        self.time_decay = nn.Parameter(speed.view(self.n_heads, head_dim))
        self.bonus = nn.Parameter(place.bonus(width).view(self.n_heads, head_dim))
        self.receptance = orthogonal_linear(d_model, width, gain=1.0)
        self.key = orthogonal_linear(d_model, width, gain=0.1)
        self.value = orthogonal_linear(d_model, width, gain=1.0)
        self.gate = orthogonal_linear(d_model, width, gain=0.1)
        self.norm = nn.GroupNorm(self.n_heads, width)
        nn.init.constant_(self.norm.weight, ((1 + layer) / n_layers) ** 0.7)
        self.out = zero_linear(width, d_model)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVState]:
        """Mix a chunk, O(l d (d + head_dim))."""
        previous, last = token_shift(x, state.last, mask)
        receptance, key, value, gate = self._branches(x, previous)
        receptance, key, value = self._split(receptance), self._split(key), self._split(value)
        log_decay = -self.time_decay.exp()[:, None].expand_as(key)
        if mask is not None:
            padding = ~mask[:, None, :, None]
            key, log_decay = key.masked_fill(padding, 0), log_decay.masked_fill(padding, 0)
        y, memory = gated_linear_attention(receptance, key, value, log_decay, self.bonus, state.memory)
        return self._finish(join_heads(y), gate), RWKVState(last, memory)

    def step(self, x: Float[Tensor, "b d"], state: RWKVState) -> tuple[Float[Tensor, "b d"], RWKVState]:
        """Mix one position, O(d (d + head_dim))."""
        *inputs, gate = self._branches(x, state.last.to(x.dtype))
        receptance, key, value = (z.view(state.memory.shape[:3]).to(state.memory.dtype) for z in inputs)
        decay, bonus = self._decay().expand_as(key), self.bonus.to(key.dtype)
        y, memory = memory_step(receptance, key, value, state.memory, decay, None, None, bonus)
        return self._finish(y.flatten(1), gate), RWKVState(x.to(state.last.dtype, copy=True), memory)

    def _branches(self, x: Float[Tensor, "b *l d"], previous: Float[Tensor, "b *l d"]) -> tuple[Tensor, ...]:
        """Receptance, key, value and gate."""
        receptance = self.receptance(torch.lerp(previous, x, self.share_receptance))
        key = self.key(torch.lerp(previous, x, self.share_key))
        value = self.value(torch.lerp(previous, x, self.share_value))
        return receptance, key, value, F.silu(self.gate(torch.lerp(previous, x, self.share_gate)))

    def _finish(self, y: Float[Tensor, "b *l c"], gate: Float[Tensor, "b *l c"]) -> Float[Tensor, "b *l d"]:
        y = self.norm((y / self.divisor).view(-1, y.shape[-1])).view_as(gate)
        return self.out(y.to(gate.dtype) * gate)

    @of_weights
    def _decay(self) -> Float[Tensor, "h n"]:
        """What is left of the memory after a step, in float32 or wider."""
        return (-self.time_decay.exp()).to(torch.promote_types(self.time_decay.dtype, torch.float32)).exp()
