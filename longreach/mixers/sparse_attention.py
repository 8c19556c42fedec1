"""Sparse attention (Child et al. 2019, https://arxiv.org/abs/1904.10509), causal, in the merged form of its patterns.

With s = `stride`, position i sees the j <= i of both sets, in one softmax:

    fixed       j // s = i // s                 its own block
                j mod s >= s - c                the last c = `n_summary` positions of every block, which sum it up
    strided     i - j < w                       the w newest positions, w = s if nothing else is said
                (i - j) mod s = 0               every s-th position

    y_i = sum_j softmax_j(rotary(q_i) . rotary(k_j) / sqrt(e)) v_j W_out

Training costs O(l (s + l c / s)) or O(l (w + l / s)) time, so O(l^1.5) at s = sqrt(l), and O(l) memory.  Decoding keeps
all keys and values, as later positions may come back to any of them.

Axes: b batch, l length, d model width, h heads, e head width, m keys, n blocks of s positions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.pattern_attention import PatternAttention, Position
from longreach.ops.attention import attention
from longreach.ops.attention_mask import AttentionMask
from longreach.ops.block_attention import band_of_blocks, block_attention, columns, merge_attention, rows

COLUMN_BLOCK = 64
"""Queries in a block where every s-th position attends to its like."""


@dataclass(frozen=True)
class SparseOptions:
    """Details of the patterns.

    Attributes:
        n_summary: fixed: how many positions at the end of a block all later ones see; 0 for none.
        summarise_first: fixed: whether all later positions also see the first one of every block (Long Range Arena).
        window: strided: how many of the newest positions one sees; None for the stride.
        class_token: whether the first position sees everything and is seen by everything, and the pattern begins
            after it (Long Range Arena).  It sees the future, so such a mixer is not causal.
    """

    n_summary: int = 8
    summarise_first: bool = False
    window: int | None = None
    class_token: bool = False


class SparseAttention(PatternAttention):
    """Multi-head attention over a sparse pattern.

    Args:
        d_model: width of the model.
        n_heads: number of heads.
        head_dim: width of a head (the default: d_model / n_heads).
        pattern: which sets of positions one sees.
        stride: length of a block (fixed), or distance of the far positions (strided); about the square root of the
            length is cheapest.
        options: details of the patterns.
        position: how positions enter, by rotation or not at all (as published; the model adds them to its input).
        bias: whether the two projections have biases.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        head_dim: int | None = None,
        pattern: Literal["fixed", "strided"] = "fixed",
        stride: int = 64,
        options: SparseOptions = SparseOptions(),
        position: Position = "rotary",
        bias: bool = False,
    ) -> None:
        super().__init__(
            d_model, n_heads=n_heads, head_dim=head_dim, position=position, causal=not options.class_token, bias=bias
        )
        window = stride if options.window is None else options.window
        if stride < 1 or window < 1:
            raise InputError(f"{stride=} and {window=} must be at least 1")
        if pattern == "fixed" and not 0 <= options.n_summary <= stride:
            raise InputError(
                f"n_summary={options.n_summary} positions of a block of {stride=} make no sense; use fewer"
            )
        self.pattern, self.stride, self.window, self.class_token = pattern, stride, window, options.class_token
        first = {0} if options.summarise_first else set()
        self.summary = sorted(first | set(range(stride - options.n_summary, stride)))

    def _mix(
        self,
        query: Float[Tensor, "b h l e"],
        key: Float[Tensor, "b h l e"],
        value: Float[Tensor, "b h l f"],
        mask: Bool[Tensor, "b l"] | None,
    ) -> Float[Tensor, "b h l f"]:
        """Both sets, merged; and the class token by itself.  Padding comes last, where only that would see it."""
        if not self.class_token:
            return merge_attention(*self._sets(query, key, value))[0]
        token = attention(query[:, :, :1], key, value, AttentionMask(key_mask=mask))
        if query.shape[2] == 1:
            return token
        first_key, first_value = key[:, :, :1], value[:, :, :1]
        query, key, value = query[:, :, 1:], key[:, :, 1:], value[:, :, 1:]
        every = torch.zeros(1, 1, -(-query.shape[2] // self.stride), 1, dtype=torch.int64, device=query.device)
        to_token = block_attention(query, first_key, first_value, every, self.stride, key_block_size=1)
        return torch.cat([token, merge_attention(*self._sets(query, key, value), to_token)[0]], dim=2)

    def _visible(self, query: Int[Tensor, "b l 1"], key: Int[Tensor, "b 1 m"]) -> Bool[Tensor, "b l m"]:
        """In one of the two sets."""
        if self.pattern == "strided":
            return (query - key < self.window) | ((query - key) % self.stride == 0)
        is_summary = torch.isin(key % self.stride, self._summary(key.device))
        return (query // self.stride == key // self.stride) | is_summary

    def _sets(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """y and log Z of the sets of the pattern, made disjoint."""
        sets = self._fixed if self.pattern == "fixed" else self._strided
        return sets(query, key, value)

    def _fixed(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What is no summary of the own block; all summaries so far."""
        length, stride, device = query.shape[2], self.stride, query.device
        position, summary = torch.arange(length, device=device)[None], self._summary(device)
        n = -(-length // stride)
        own = AttentionMask(True, key_mask=~torch.isin(position % stride, summary))
        sets = [block_attention(query, key, value, band_of_blocks(n, 0, device=device), stride, own)]
        if self.summary:
            chosen = (torch.arange(n, device=device)[:, None] * stride + summary).flatten()
            inside = chosen.clamp(max=length - 1)
            rule = AttentionMask(True, None, None, None, None, position, chosen[None])
            key, value, size = key[:, :, inside], value[:, :, inside], len(self.summary)
            before = band_of_blocks(n, n, device=device)
            sets.append(block_attention(query, key, value, before, stride, rule, key_block_size=size))
        return sets

    def _strided(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The newest positions; every s-th of those before them, where each column is a sequence of its own."""
        length, size = query.shape[2], min(self.stride, query.shape[2])
        n = -(-length // size)
        near = band_of_blocks(n, -(-(self.window - 1) // size), device=query.device)
        sets = [block_attention(query, key, value, near, size, AttentionMask(True, self.window))]
        if n > 1:
            query, key, value = (columns(x, size) for x in (query, key, value))
            place = torch.arange(n, device=query.device)[None]
            rule = AttentionMask(True, None, None, None, None, place - -(-self.window // size), place)
            before = band_of_blocks(-(-n // COLUMN_BLOCK), n, device=query.device)
            y, log_total = block_attention(query, key, value, before, COLUMN_BLOCK, rule)
            sets.append((rows(y, size, length), rows(log_total[..., None], size, length)[..., 0]))
        return sets

    def _summary(self, device: torch.device) -> Int[Tensor, " c"]:
        """Where in a block its summary stands."""
        return torch.tensor(self.summary, dtype=torch.int64, device=device)
