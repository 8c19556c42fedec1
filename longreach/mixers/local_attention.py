"""Local attention: a sequence is cut into blocks, and a position sees its own block and neighbouring ones
(Parmar et al. 2018, https://arxiv.org/abs/1802.05751; as a baseline: Tay et al. 2020, https://arxiv.org/abs/2011.04006).

    q, k, v = split(x W_qkv)
    y_i     = sum_j softmax_j(rotary(q_i) . rotary(k_j) / sqrt(e)) v_j W_out

over the j with |i // w - j // w| <= r, and j <= i if causal; w = `block_size`, r = `n_neighbours`.  Positions count
the real positions of a row.

Training costs O(l w (1 + 2 r)) time and O(l) memory.  Decoding keeps the blocks that can still be seen.

Axes: b batch, l length, d model width, h heads, e head width, m keys.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.pattern_attention import PatternAttention, Position
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import band_of_blocks, block_attention


class LocalAttention(PatternAttention):
    """Multi-head attention within blocks.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head (the default: d_model / n_heads).
        block_size: number of positions in a block.
        n_neighbours: how many blocks before its own, and after it without `causal`, a position sees too; with 0, as
            published, blocks never learn of each other.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        causal: whether a position sees only itself and what came before it.
        bias: whether the two projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        block_size: int = 64,
        n_neighbours: int = 0,
        position: Position = "rotary",
        causal: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, n_heads=n_heads, head_dim=head_dim, position=position, causal=causal, bias=bias)
        if block_size < 1 or n_neighbours < 0:
            raise InputError(f"{block_size=} must be at least 1, {n_neighbours=} at least 0")
        self.block_size, self.n_neighbours = block_size, n_neighbours
        self.reach = block_size * (1 + n_neighbours)

    def _mix(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """Every block with its neighbours."""
        n, ahead = -(-query.shape[2] // self.block_size), 0 if self.causal else self.n_neighbours
        listed = band_of_blocks(n, self.n_neighbours, ahead, device=query.device)
        rule = AttentionMask(self.causal, key_mask=mask)
        y, _ = block_attention(query, key, value, listed, self.block_size, rule)
        return y

    def _visible(self, query: Int[Tensor, "b l 1"], key: Int[Tensor, "b 1 m"]) -> Bool[Tensor, "b l m"]:
        """Blocks are near enough."""
        return query // self.block_size - key // self.block_size <= self.n_neighbours
