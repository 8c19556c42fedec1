"""Luna (Ma et al. 2021, https://arxiv.org/abs/2106.01540): attention to a short sequence that attends to the long one.

    packed = softmax(p W_pq (x W_pk)^T e^-1/2) x W_pv             p: a learned sequence, the memory
    y      = softmax(x W_q (packed W_k)^T e^-1/2) packed W_v W_out

With tied keys and values W_pk = W_pv and W_k = W_v.  The published model hands `packed` on to the next layer, in the
place of p; as a mixer each layer learns a p of its own, and `pack_and_unpack` is what a layer of that model computes.

Axes: b batch, l length, d model width, p memory rows.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.heads import attend, join_heads, split_heads
from longreach.ops.attention_mask import NO_MASK, AttentionMask


class Luna(SequenceMixer[State]):
    """Attention in O(l p d); bidirectional only, see CausalLuna for the other.

    Args:
        d_model: width of the model.
        n_memory: number of rows of p.
        n_heads: number of heads with which the input attends to what is packed.
        n_pack_heads: number of heads with which p attends to the input; None is n_heads.
        tie_keys_values: whether keys are values.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
    """

    keeps_its_start = True

    def __init__(
        self,
        d_model: int,
        *,
        n_memory: int = 16,
        n_heads: int = 4,
        n_pack_heads: int | None = None,
        tie_keys_values: bool = True,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(d_model, causal=False)
        self.n_heads, self.n_pack_heads = n_heads, n_heads if n_pack_heads is None else n_pack_heads
        if n_memory < 1 or d_model % n_heads or d_model % self.n_pack_heads:
            raise InputError(
                f"n_heads={n_heads} and n_pack_heads={self.n_pack_heads} must divide d_model={d_model}, and "
                f"n_memory={n_memory} must be at least 1"
            )
        if not 0.0 <= dropout < 1.0:
            raise InputError(f"dropout={dropout} must be at least 0 and below 1")
        self.dropout = dropout
        self.memory = nn.Parameter(torch.randn(n_memory, d_model) * d_model**-0.5)
        keys_and_values = d_model if tie_keys_values else 2 * d_model
        self.pack_query = nn.Linear(d_model, d_model, bias=bias)
        self.pack_key_value = nn.Linear(d_model, keys_and_values, bias=bias)
        self.query = nn.Linear(d_model, d_model, bias=bias)
        self.key_value = nn.Linear(d_model, keys_and_values, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)
        for linear in (self.pack_query, self.pack_key_value, self.query, self.key_value):
            for weight in linear.weight.split(d_model):
                nn.init.xavier_uniform_(weight.detach(), gain=2**-0.5)
        nn.init.xavier_uniform_(self.out.weight)
        if self.out.bias is not None:
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Pack the sequence into the shape of the memory, and attend to that; O(l p d)."""
        return self.pack_and_unpack(x, self.memory.expand(x.shape[0], -1, -1), mask)[0]

    def pack_and_unpack(
        self,
        x: Float[Tensor, "b l d"],
        memory: Float[Tensor, "b p d"],
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b p d"]]:
        """The outputs and `packed`, from p of each row of the batch."""
        dropout = self.dropout if self.training else 0.0
        key, value = self._keys_and_values(self.pack_key_value(x), self.n_pack_heads)
        query = split_heads(self.pack_query(memory), self.n_pack_heads)
        rule = NO_MASK if mask is None else AttentionMask(key_mask=mask)
        packed = join_heads(attend(query, key, value, rule, dropout=dropout))
        key, value = self._keys_and_values(self.key_value(packed), self.n_heads)
        y = attend(split_heads(self.query(x), self.n_heads), key, value, dropout=dropout)
        return self.out(join_heads(y)), packed

    def _keys_and_values(self, projected: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        """Two tensors of heads, which are one where keys are values."""
        heads = [split_heads(part, n_heads) for part in projected.split(self.d_model, dim=-1)]
        return heads[0], heads[-1]
