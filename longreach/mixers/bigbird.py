"""BigBird: neighbouring, first, last and random blocks (Zaheer et al. 2020, https://arxiv.org/abs/2007.14062).

    q, k, v = split(x W_qkv)
    y_i     = sum_j softmax_j(rotary(q_i) . rotary(k_j) / sqrt(e)) v_j W_out

for j in the blocks that the block of i sees: itself and its two neighbours, the first and the last block, and
`n_random` of the others, drawn once for every head; the first and the last block see everything.  A block is
`block_size` real positions of a row.  Bidirectional, as in the paper: only the whole sequence has a last block.

What is drawn is a function of `seed`, the head, the block and the number of blocks: the `n_random` blocks with the
smallest hash, so that nothing has to be stored and padding changes nothing.

Training costs O(l block_size (7 + n_random)) time, and O((l / block_size)^2) for the hashes; O(l) memory.

Axes: b batch, l length, d model width, h heads, e head width, n blocks, r random blocks.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.pattern_attention import PatternAttention, Position
from longreach.ops.attention import attention
from longreach.ops.attention_dropout import scramble
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import block_attention


class BigBird(PatternAttention):
    """Multi-head attention over neighbouring, first, last and random blocks.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head (the default: d_model / n_heads).
        block_size: number of positions in a block.
        n_random: how many random blocks a block sees, if there are so many others.
        seed: a whole number that decides which; published models number their layers.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        bias: whether the two projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        block_size: int = 64,
        n_random: int = 3,
        seed: int = 0,
        position: Position = "rotary",
        bias: bool = False,
    ) -> None:
        super().__init__(d_model, n_heads=n_heads, head_dim=head_dim, position=position, causal=False, bias=bias)
        if block_size < 1 or n_random < 0:
            raise InputError(f"{block_size=} must be at least 1, {n_random=} at least 0")
        self.block_size, self.n_random, self.seed = block_size, n_random, seed

    def _mix(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """With the block of the last real position as the last one."""
        count = torch.full((1,), query.shape[2], device=query.device) if mask is None else mask.sum(1).clamp(min=1)
        return self._attend(query, key, value, mask, (count - 1) // self.block_size)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, last: Tensor) -> Tensor:
        """The listed blocks; and what the first block and the `last` one (#b) see."""
        length, size = query.shape[2], self.block_size
        listed = self._listed(-(-length // size), last.view(-1, 1, 1))
        y, _ = block_attention(query, key, value, listed, size, AttentionMask(key_mask=mask))
        inside = torch.arange(size, device=query.device)
        chosen = torch.cat([inside.expand(len(last), -1), last[:, None] * size + inside], dim=1).clamp(max=length - 1)
        chosen = chosen.expand(len(query), -1)[:, None, :, None].expand(-1, self.n_heads, -1, query.shape[-1])
        y_global = attention(query.gather(2, chosen), key, value, AttentionMask(key_mask=mask))
        position = torch.arange(length, device=query.device)
        block, within = position // size, position % size
        place = (within + size * (block > 0)).expand(len(query), -1)[:, None, :, None]
        is_global = ((block == 0) | (block == last[:, None]))[:, None, :, None]
        return torch.where(is_global, y_global.gather(2, place.expand_as(y)), y)

    def _listed(self, n: int, last: Int[Tensor, "#b 1 1"]) -> Int[Tensor, "#b h n k"]:
        """The table of blocks between the first and the last one of each row, every block at most once."""
        own = torch.arange(n, device=last.device)[:, None]
        first, final = torch.where(own > 1, 0, -1).expand(len(last), -1, -1), torch.where(own + 1 < last, last, -1)
        near = (own + torch.arange(-1, 2, device=last.device)).expand(len(last), -1, -1)
        near = torch.where(near <= last, near, -1)
        fixed = torch.cat([first, near, final], dim=-1)[:, None].expand(-1, self.n_heads, -1, -1)
        listed = torch.cat([fixed, self.random_blocks(n, last)], dim=-1)
        return torch.where((own > 0) & (own < last[:, None]), listed, -1)

    def random_blocks(self, n: int, last: Int[Tensor, "#b 1 1"]) -> Int[Tensor, "#b h n r"]:
        """The random blocks of each of `n` blocks in rows whose last block is `last`; -1 where there are too few."""
        own, head = torch.arange(n, device=last.device), torch.arange(self.n_heads, device=last.device)
        line = scramble(
            (head[:, None] * 2**20 + own).to(torch.int32) ^ scramble(own.new_tensor(self.seed).to(torch.int32))
        )
        drawn = scramble(line[..., None] ^ scramble((-1 - own).to(torch.int32))).long()  # (h, n, n)
        free = (own > 0) & (own < last) & ((own[:, None] - own).abs() > 1)
        drawn = torch.where(free[:, None], drawn, torch.iinfo(torch.int64).max)
        chosen = drawn.topk(min(self.n_random, n), dim=-1, largest=False).indices
        return torch.where(free[:, None].expand_as(drawn).gather(-1, chosen), chosen, -1)
