"""RWKV-7 (Goose), the time mixing (Peng et al. 2025, https://arxiv.org/abs/2503.14456).

The memory of a head is rewritten by a delta rule whose rate, and whose decay, depend on the input through maps of low
rank (longreach.ops.delta_rule):

    x^j_t = share_j x_t + (1 - share_j) x_{t-1}       j = receptance, decay, key, value, rate, gate
    w     = exp(-exp(-softplus(-(w_0 + tanh(x^decay W_1) W_2)) - 1/2))                    between 0.545 and 1
    a     = sigmoid(a_0 + x^rate A_1 A_2)             kappa = normalise(k removal), by heads
    k     = (W_key x^key) (1 + (a - 1) rewrite)
    S_t   = diag(w) S_{t-1} - (a kappa) (kappa^T S_{t-1}) + k v^T,       o_t = S_t^T r
    y     = W_out ((group_norm(o) + (sum_n r_n bonus_n k_n) v) * (sigmoid(x^gate G_1) G_2))

In the published model the values of later layers are mixed with those of the first; longreach.models.RWKV does that
through `mix`.

Axes: b batch, l length, d channels, h heads, n channels of a head.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.mixers.base import OptimHint
from longreach.mixers.rwkv_memory import RWKVMemory, RWKVState
from longreach.mixers.rwkv_start import Place, low_rank, spread, uniform_linear, zero_linear
from longreach.ops.delta_rule import delta_rule
from longreach.ops.memory_step import memory_step
from longreach.ops.token_shift import token_shift

Revise = Callable[[Tensor, Tensor], Tensor]
"""(value, the input from which it was made), both (b, l, d) -> the value to use."""

_NO_DECAY = OptimHint(weight_decay=False)


class RWKV7(RWKVMemory):
    """Time mixing of RWKV-7: O(d (d + head_dim + ranks)) on a position, in training and in generation.

    Args:
        d_model: width of the model.
        head_dim: number of channels of a head.
        decay_rank: rank of the map to the decays; None is about 2.5 sqrt(d_model), a multiple of 32.
        rate_rank: rank of the map to the rates; None is about 2.5 sqrt(d_model), a multiple of 32.
        gate_rank: rank of the map to the gate; None is about 5 sqrt(d_model), a multiple of 32.
        layer: which layer of the stack this is, from 0; shares, decays and more start from values that depend on it.
        n_layers: number of layers in the stack.
    """

    optim_hints = {
        "decay": OptimHint(lr_scale=2.0, weight_decay=False),
        **dict.fromkeys(
            ("shares", "decay_down", "decay_up", "rate_down", "rate_up", "gate_down", "gate_up", "bonus"), _NO_DECAY
        ),
    }

    def __init__(
        self,
        d_model: int,
        *,
        head_dim: int = 64,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        layer: int = 0,
        n_layers: int = 1,
    ) -> None:
        super().__init__(d_model, d_model, head_dim)
        place = Place(layer, n_layers)
        powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
        self.shares = nn.Parameter(torch.stack([place.share(d_model, power).detach() for power in powers]))
        slope, bend = spread(d_model) - 0.5, _bend(d_model, head_dim)
        speed = place.decay_speed(d_model, -6.0, 6.0, 1 + place.depth**0.3)
        self.decay = nn.Parameter(speed + 0.5 + 2.5 * bend)
        self.decay_down, self.decay_up = low_rank(d_model, decay_rank, 2.5)
        self.rate = nn.Parameter(-0.19 + 0.3 * bend + 0.4 * slope)
        self.rate_down, self.rate_up = low_rank(d_model, rate_rank, 2.5)
        self.gate_down, self.gate_up = low_rank(d_model, gate_rank, 5.0)
        self.removal = nn.Parameter(0.71 - 0.1 * slope)
        self.rewrite = nn.Parameter(torch.full((d_model,), 1.02))
        self.bonus = nn.Parameter(torch.full((self.n_heads, head_dim), -0.04))
        bound = 0.5 * d_model**-0.5
        self.receptance = uniform_linear(d_model, d_model, bound)
        self.key = uniform_linear(d_model, d_model, 0.1 * bound)
        self.value = uniform_linear(d_model, d_model, bound)
        self.norm = nn.GroupNorm(self.n_heads, d_model, eps=64e-5)
        nn.init.constant_(self.norm.weight, ((1 + layer) / n_layers) ** 0.7)
        self.out = zero_linear(d_model, d_model)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVState]:
        """Mix a chunk, O(l d (d + head_dim + ranks))."""
        return self.mix(x, state, mask)

    def mix(
        self,
        x: Float[Tensor, "b l d"],
        state: RWKVState,
        mask: Bool[Tensor, "b l"] | None = None,
        revise: Revise | None = None,
    ) -> tuple[Float[Tensor, "b l d"], RWKVState]:
        """The same, with values that `revise` may change before they are used."""
        previous, last = token_shift(x, state.last, mask)
        heads = *x.shape[:2], self.n_heads, self.head_dim
        mixed = torch.lerp(previous, x, self.shares[:, None, None].to(x.dtype))
        for_receptance, for_decay, for_key, for_value, for_rate, for_gate = mixed.unbind(0)
        receptance, key, value = self.receptance(for_receptance), self.key(for_key), self.value(for_value)
        if revise is not None:
            value = revise(value, for_value)
        decay = self.decay + torch.tanh(for_decay @ self.decay_down) @ self.decay_up
        log_decay = -(math.e**-0.5) * torch.sigmoid(decay)
        rate = torch.sigmoid(self.rate + for_rate @ self.rate_down @ self.rate_up)
        gate = torch.sigmoid(for_gate @ self.gate_down) @ self.gate_up
        kappa = F.normalize((key * self.removal).view(heads), dim=-1)
        key = key * (1 + (rate - 1) * self.rewrite)
        receptance, key, value, log_decay, rate = (z.view(heads) for z in (receptance, key, value, log_decay, rate))
        if mask is not None:
            real = mask[..., None, None]
            key, log_decay, kappa = (z.masked_fill(~real, 0) for z in (key, log_decay, kappa))
        y, memory = _remember((receptance, key, value, log_decay, -kappa, kappa * rate), state.memory)
        present = (receptance * self.bonus * key).sum(-1, keepdim=True) * value
        y = self.norm(y.reshape(-1, self.d_model)).view_as(x) + present.flatten(2)
        return self.out(y.to(gate.dtype) * gate), RWKVState(last, memory)


def _remember(
    inputs: tuple[Float[Tensor, "b l h n"], ...], memory: Float[Tensor, "b h n n"]
) -> tuple[Float[Tensor, "b l h n"], Float[Tensor, "b h n n"]]:
    """The delta rule on query, key, value, log decay, read and write."""
    if inputs[0].shape[1] > 1:
        query, key, value, log_decay, read, write = (z.transpose(1, 2) for z in inputs)
        y, memory = delta_rule(query, key, value, log_decay, read, write, memory)
        return y.transpose(1, 2), memory
    query, key, value, log_decay, read, write = (z[:, 0].to(memory.dtype) for z in inputs)
    y, memory = memory_step(query, key, value, memory, log_decay.exp(), read, write)
    return y[:, None], memory


def _bend(channels: int, head_dim: int) -> Float[Tensor, " d"]:
    """From -1 to 1 within every head, flat in the middle."""
    middle = max(head_dim - 1, 1) / 2
    position = (torch.arange(channels) % head_dim - middle) / middle
    return position * position.abs()
