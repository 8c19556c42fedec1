"""The Gated Attention Unit (Hua et al. 2022, https://arxiv.org/abs/2202.10447; FLASH-Quad), attention and gate in one.

    u, v, z = silu(x W_in)                               widths f, f, e
    q, k    = scale_q z + shift_q, scale_k z + shift_k
    a_ts    = max(q_t . k_s / n_t + bias_(s - t), 0)^2   n_t: how many positions t may see;  s <= t if causal
    y       = (u * a v) W_out

The bias is a table of distances, whose size bounds the length.  The state of a causal mixer is keys and values.

Axes: b batch, l length, d model width, e key width, f hidden width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import draw_seed
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.key_value_cache import KeyValueBlock, KeyValueCache, append, empty_cache, join, next_positions, parts
from longreach.ops.relative_attention import relative_attention


class GAU(SequenceMixer[KeyValueCache]):
    """Squared-relu attention with one head, gated: O(l^2 (e + f)) time, O(l (d + f)) memory.

    Args:
        d_model: width of the model (embed_dim).
        max_length: the longest sequence (max_positions).
        d_key: width of queries and keys (zdim).
        d_value: width of gate and values (hdim); None is twice the width of the model.
        causal: whether a position sees only itself and what came before it.
        attention_dropout: probability of dropping an attention weight in training.
        hidden_dropout: probability of dropping an element of what the attention gives, in training.
    """

    keeps_its_start = True

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        d_key: int = 128,
        d_value: int | None = None,
        causal: bool = True,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__(d_model, causal=causal)
        self.max_length, self.d_key = max_length, d_key
        self.d_value = 2 * d_model if d_value is None else d_value
        if min(max_length, d_key, self.d_value) < 1:
            raise InputError(f"max_length={max_length}, d_key={d_key}, d_value={d_value} must be at least 1")
        if not 0.0 <= attention_dropout < 1.0 or not 0.0 <= hidden_dropout < 1.0:
            raise InputError(f"{attention_dropout=} and {hidden_dropout=} must be at least 0 and below 1")
        self.attention_dropout, self.hidden_dropout = attention_dropout, hidden_dropout
        self.into = nn.Linear(d_model, 2 * self.d_value + d_key)
        self.out = nn.Linear(self.d_value, d_model)
        for linear in (self.into, self.out):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.scale = nn.Parameter(0.02 * torch.randn(2, d_key))
        self.shift = nn.Parameter(torch.zeros(2, d_key))
        self.bias = nn.Parameter(0.02 * torch.randn(2 * max_length - 1))

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend over the whole sequence."""
        self._check_length(x.shape[1])
        gate, query, key, value = self._project(x)
        position = torch.arange(x.shape[1], device=x.device)[None]
        if mask is not None:
            position = torch.where(mask, mask.cumsum(1) - 1, position)
        rule = AttentionMask(self.causal, None, mask, None, None, position, position)
        return self._attend(gate, query, key, value, rule)

    def init_state(self, batch_size: int) -> KeyValueCache:
        """Nothing has been read."""
        if not self.causal:
            raise self._no_recurrent_view()
        empty = self.bias.new_zeros(batch_size, 1, 0, self.d_key)
        return empty_cache(empty, empty.new_zeros(batch_size, 1, 0, self.d_value))

    def step(self, x: Float[Tensor, "b d"], state: KeyValueCache) -> tuple[Float[Tensor, "b d"], KeyValueCache]:
        """Attend from one new position, O(l (e + f))."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    def prefill(
        self, x: Float[Tensor, "b l d"], state: KeyValueCache, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], KeyValueCache]:
        """Attend from a chunk of new positions to them and to everything before."""
        if not self.causal:
            raise self._no_recurrent_view()
        gate, query, key, value = self._project(x)
        position = next_positions(state, x.shape[1], mask)
        new = KeyValueBlock(key[:, None], value[:, None], position)
        seen = join(parts(state, new))
        self._check_length(seen.size)
        rule = AttentionMask(True, None, seen.position >= 0, None, None, position, seen.position)
        return self._attend(gate, query, seen.key[:, 0], seen.value[:, 0], rule), append(state, new)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Gate, query, key and value."""
        gate, value, shared = F.silu(self.into(x)).split((self.d_value, self.d_value, self.d_key), dim=-1)
        query, key = (shared[..., None, :] * self.scale + self.shift).unbind(-2)
        return gate, query, key, value

    def _attend(self, gate: Tensor, query: Tensor, key: Tensor, value: Tensor, rule: AttentionMask) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        seed = draw_seed(dropout, query.device)
        attended = relative_attention(
            query, key, value, self.bias, rule, weighting="relu2", dropout=dropout, dropout_seed=seed
        )
        return self.out(gate * F.dropout(attended, self.hidden_dropout, self.training))
