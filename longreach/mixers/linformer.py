"""Linformer (Wang et al. 2020, https://arxiv.org/abs/2006.04768): attention to a fixed number of mixtures of keys.

    q, k, v = split(x W_in)
    k', v'  = E^T k, F^T v                             mixtures over the length: E, F (max_length, r), cut to the length
    y       = softmax(q k'^T e^-1/2) v'                out = y W_out

E and F mix all positions, so there is no causal form, and no longer sequence than they have rows.  Row i belongs to the
i-th real position of a sequence; the published code lets padding into the mixtures.

Axes: b batch, l length, d model width, h heads, e head width, r rank, p projections (1 or h).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer, State
from longreach.mixers.heads import Heads
from longreach.ops.compaction import compact, restore

Sharing = Literal["none", "heads", "keys_and_values"]


class Linformer(SequenceMixer[State]):
    """Attention in O(l r d); bidirectional only.

    Args:
        d_model: width of the model.
        max_length: the longest sequence.
        rank: number of mixtures.
        n_heads: number of heads.
        head_dim: width of a head; None is d_model / n_heads.
        sharing: `none` has an E and an F for every head, `heads` one E and one F, `keys_and_values` one E = F for all.
        dropout: probability of dropping an attention weight in training.
        bias: whether the projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int,
        rank: int = 256,
        n_heads: int = 4,
        head_dim: int | None = None,
        sharing: Sharing = "keys_and_values",
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, causal=False)
        if max_length < 1 or rank < 1:
            raise InputError(f"max_length={max_length} and rank={rank} must be at least 1")
        self.max_length = max_length
        self.heads = Heads(d_model, n_heads, head_dim, bias=bias, dropout=dropout)
        count = n_heads if sharing == "none" else 1
        std = max_length**-0.5  # a mixture of independent keys is as large as a key
        self.E = nn.Parameter(torch.randn(count, max_length, rank) * std)
        self.F = None if sharing == "keys_and_values" else nn.Parameter(torch.randn(count, max_length, rank) * std)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Attend to the mixtures, O(l r d)."""
        self._check_length(x.shape[1])
        if mask is not None:
            packed = compact(x, mask)
            return restore(self._attend(packed.x, packed.mask), packed)
        return self._attend(x, None)

    def _attend(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None) -> Float[Tensor, "b l d"]:
        """The same where padding comes last."""
        query, key, value = self.heads.split(x)
        if mask is not None:
            key, value = (projected.masked_fill(~mask[:, None, :, None], 0.0) for projected in (key, value))
        E, F = (kernel[:, : x.shape[1]].mT for kernel in (self.E, self.E if self.F is None else self.F))
        return self.heads.join(self.heads.attend(query, E @ key, F @ value))
