"""RWKV-6 (Finch), the time mixing (Peng et al. 2024, https://arxiv.org/abs/2404.05892).

RWKV-5 whose shares and decays depend on the input, through maps of low rank:

    x^j_t = x_t + (x_{t-1} - x_t) (1 - share_j - tanh(x' A_j) B_j)    j = decay, key, value, receptance, gate
    x'_t  = share x_t + (1 - share) x_{t-1}
    o_t   = r_t^T (S_{t-1} + diag(u) k_t v_t^T),    S_t = diag(w_t) S_{t-1} + k_t v_t^T
    w_t   = exp(-exp(time_decay + tanh(x^decay W_1) W_2))             u = bonus
    y     = W_out (group_norm(o) * silu(W_gate x^gate))

Axes: b batch, l length, d channels, h heads, n channels of a head, r rank.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import OptimHint
from longreach.mixers.heads import join_heads
from longreach.mixers.rwkv_memory import RWKVMemory, RWKVState
from longreach.mixers.rwkv_start import Place, orthogonal_linear, zero_linear
from longreach.ops.gated_linear_attention import gated_linear_attention
from longreach.ops.memory_step import memory_step
from longreach.ops.token_shift import token_shift

MIXED = ("decay", "key", "value", "receptance", "gate")
"""What sees a mixture of two positions, in the order in which the parameters hold them."""


class RWKV6(RWKVMemory):
    """Time mixing of RWKV-6: O(d (d + head_dim + ranks)) on a position, in training and in generation.

    Args:
        d_model: width of the model.
        d_attention: width inside; None is `d_model`.
        head_dim: number of channels of a head.
        divisor: scales the least variance of the norm, as if the outputs were divided by it before.
        share_rank: rank of the maps to the shares; None is 32, and 64 from 4,096 channels on.
        decay_rank: rank of the map to the decays; None is 64, and 128 from 4,096 channels on.
        layer: which layer of the stack this is, from 0; shares, decays and more start from values that depend on it.
        n_layers: number of layers in the stack.
    """

    optim_hints = {
        "time_decay": OptimHint(lr_scale=2.0, weight_decay=False),
        **dict.fromkeys(
            ("bonus", "shares", "share_down", "share_up", "decay_down", "decay_up"), OptimHint(weight_decay=False)
        ),
    }

    def __init__(
        self,
        d_model: int,
        *,
        d_attention: int | None = None,
        head_dim: int = 64,
        divisor: float = 8.0,
        share_rank: int | None = None,
        decay_rank: int | None = None,
        layer: int = 0,
        n_layers: int = 1,
    ) -> None:
        width = d_model if d_attention is None else d_attention
        super().__init__(d_model, width, head_dim)
        wide = 2 if d_model >= 4096 else 1
        share_rank = 32 * wide if share_rank is None else share_rank
        decay_rank = 64 * wide if decay_rank is None else decay_rank
        if min(share_rank, decay_rank) < 1:
            raise InputError(f"share_rank={share_rank} and decay_rank={decay_rank} must be at least 1")
        place = Place(layer, n_layers)
        self.share = place.share(d_model)
        starts = [place.share(d_model, power=power, deep=deep) for power, deep in
                  ((1.0, 0.0), (1.0, 0.0), (1.0, 0.3), (0.5, 0.0), (0.5, 0.0))]  # fmt: skip
        self.shares = nn.Parameter(torch.stack([start.detach() for start in starts]))
        self.share_down = nn.Parameter(torch.zeros(len(MIXED), d_model, share_rank))
        self.share_up = nn.Parameter(torch.empty(len(MIXED), share_rank, d_model).uniform_(-0.01, 0.01))
        self.time_decay = nn.Parameter(place.decay_speed(width, -6.0, 5.0, 0.7 + 1.3 * place.depth))
        self.decay_down = nn.Parameter(torch.zeros(d_model, decay_rank))
        self.decay_up = nn.Parameter(torch.empty(decay_rank, width).uniform_(-0.01, 0.01))
        self.bonus = nn.Parameter(place.bonus(width).view(self.n_heads, head_dim))
        self.receptance = orthogonal_linear(d_model, width, gain=1.0)
        self.key = orthogonal_linear(d_model, width, gain=0.1)
        self.value = orthogonal_linear(d_model, width, gain=1.0)
        self.gate = orthogonal_linear(d_model, width, gain=0.1)
        self.norm = nn.GroupNorm(self.n_heads, width, eps=1e-5 * divisor**2)
        nn.init.constant_(self.norm.weight, ((1 + layer) / n_layers) ** 0.7)
        self.out = zero_linear(width, d_model)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVState]:
        """Mix a chunk, O(l d (d + head_dim + ranks))."""
        previous, last = token_shift(x, state.last, mask)
        *branches, gate = self._branches(x, previous)
        receptance, key, value, log_decay = (self._split(branch) for branch in branches)
        if mask is not None:
            padding = ~mask[:, None, :, None]
            key, log_decay = key.masked_fill(padding, 0), log_decay.masked_fill(padding, 0)
        y, memory = gated_linear_attention(receptance, key, value, log_decay, self.bonus, state.memory)
        return self._finish(join_heads(y), gate), RWKVState(last, memory)

    def step(self, x: Float[Tensor, "b d"], state: RWKVState) -> tuple[Float[Tensor, "b d"], RWKVState]:
        """Mix one position, O(d (d + head_dim + ranks))."""
        branches = self._branches(x[:, None], state.last[:, None].to(x.dtype))
        receptance, key, value, log_decay = (
            z.view(state.memory.shape[:3]).to(state.memory.dtype) for z in branches[:-1]
        )
        bonus = self.bonus.to(key.dtype)
        y, memory = memory_step(receptance, key, value, state.memory, log_decay.exp(), None, None, bonus)
        last = x.to(state.last.dtype, copy=True)
        return self._finish(y.flatten(1), branches[-1][:, 0]), RWKVState(last, memory)

    def _branches(self, x: Float[Tensor, "b l d"], previous: Float[Tensor, "b l d"]) -> tuple[Tensor, ...]:
        """Receptance, key, value, log decay and gate."""
        for_decay, for_key, for_value, for_receptance, for_gate = self._mix(x, previous)
        change = torch.tanh(for_decay @ self.decay_down) @ self.decay_up
        log_decay = -torch.exp(self.time_decay + change)
        key, value = self.key(for_key), self.value(for_value)
        return self.receptance(for_receptance), key, value, log_decay, F.silu(self.gate(for_gate))

    def _mix(self, x: Float[Tensor, "b l d"], previous: Float[Tensor, "b l d"]) -> tuple[Tensor, ...]:
        """The inputs of decay, key, value, receptance and gate."""
        mixed = torch.lerp(previous, x, self.share)
        changes = torch.tanh(mixed @ self.share_down[:, None]) @ self.share_up[:, None]  # (5, b, l, d)
        return torch.lerp(previous, x, (self.shares[:, None, None] - changes).to(x.dtype)).unbind(0)

    def _finish(self, y: Float[Tensor, "b *l c"], gate: Float[Tensor, "b *l c"]) -> Float[Tensor, "b *l d"]:
        y = self.norm(y.reshape(-1, y.shape[-1])).view_as(gate)
        return self.out(y.to(gate.dtype) * gate)
