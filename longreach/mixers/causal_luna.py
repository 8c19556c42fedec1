"""Luna's causal attention (Ma et al. 2021, https://arxiv.org/abs/2106.01540), a linear recurrence.

    a_s = softplus_2(p W_pq e^-1/2 . x_s W_pc)                    how much each row of the memory p takes of position s
    w_t = softmax(1/t sum_{s<=t} (x_t W_q e^-1/2 . x_s W_k) a_s)
    y_t = 1/t sum_{s<=t} (w_t . a_s) x_s W_v  W_out               with tied keys and values W_k = W_v

softplus_2(z) = log_2(1 + 2^z).  The state is the sums of k a^T and a v^T, and t.

Axes: b batch, l length, d model width, h heads, e head width, p memory rows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import join_heads, split_heads, widened
from longreach.ops.linear_attention import linear_attention


class CausalLunaState(NamedTuple):
    """All that later outputs depend on."""

    keys: Float[Tensor, "b h e p"]
    """The sum of k a^T over the past."""
    values: Float[Tensor, "b h p e"]
    """The sum of a v^T over the past."""
    n_read: Int[Tensor, " b"]
    """How many positions that are."""


class CausalLuna(SequenceMixer[CausalLunaState]):
    """Causal attention through a memory: O(l p d) on a sequence, O(p d) on a step.

    Args:
        d_model: width of the model.
        n_memory: number of rows of p.
        n_heads: number of heads.
        tie_keys_values: whether keys are values.
        bias: whether the projections have biases.
    """

    keeps_its_start = True

    def __init__(
        self,
        d_model: int,
        *,
        n_memory: int = 16,
        n_heads: int = 4,
        tie_keys_values: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, causal=True)
        if n_memory < 1 or n_heads < 1 or d_model % n_heads:
            raise InputError(f"n_heads={n_heads} must divide d_model={d_model}, and {n_memory=} must be at least 1")
        self.n_heads, self.tied = n_heads, tie_keys_values
        self.memory = nn.Parameter(torch.randn(n_memory, d_model) * d_model**-0.5)
        self.pack_query = nn.Linear(d_model, d_model, bias=bias)
        self.into = nn.Linear(d_model, (3 if tie_keys_values else 4) * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)
        for weight in (self.pack_query.weight, *self.into.weight.split(d_model)):
            nn.init.xavier_uniform_(weight.detach(), gain=2**-0.5)
        nn.init.xavier_uniform_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend through the memory, O(l p d)."""
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> CausalLunaState:
        """Nothing has been read."""
        n_memory, width = len(self.memory), self.d_model // self.n_heads
        keys = widened(self.memory).new_zeros(batch_size, self.n_heads, width, n_memory)
        return CausalLunaState(keys, keys.mT.clone(), torch.zeros(batch_size, dtype=torch.int64, device=keys.device))

    def step(self, x: Float[Tensor, "b d"], state: CausalLunaState) -> tuple[Float[Tensor, "b d"], CausalLunaState]:
        """Attend from one position, O(p d)."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: CausalLunaState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], CausalLunaState]:
        """Attend from a chunk, O(l p d)."""
        packing, query, *keys_and_values = (
            widened(split_heads(part, self.n_heads)) for part in self.into(x).split(self.d_model, dim=-1)
        )
        key, value = keys_and_values[0], keys_and_values[-1]
        scale = key.shape[-1] ** -0.5
        taken = self._taken(packing, widened(split_heads(self.pack_query(self.memory), self.n_heads)) * scale)
        if mask is None:
            count = state.n_read[:, None] + torch.arange(1, x.shape[1] + 1, device=x.device)
        else:
            taken = taken.masked_fill(~mask[:, None, :, None], 0.0)
            count = state.n_read[:, None] + mask.cumsum(1)
        divisor = count.clamp(min=1)[:, None, :, None]
        scores, keys = linear_attention(query * scale, key, taken, state.keys)
        y, values = linear_attention((scores / divisor).softmax(-1), taken, value, state.values)
        return self.out(join_heads(y / divisor).to(x.dtype)), CausalLunaState(keys, values, count[:, -1].clone())

    def _taken(self, packing: Float[Tensor, "b h l e"], query: Float[Tensor, "h p e"]) -> Float[Tensor, "b h l p"]:
        """a."""
        with torch.autocast(packing.device.type, enabled=False):
            return F.softplus(packing @ query.mT, beta=math.log(2))
