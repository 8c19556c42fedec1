"""Who may attend to whom: the one rule that every backend of `attention` follows.

Query i may see key j if all of these hold, where p_i and s_j are their positions:

    j is not padding        key_mask
    p_i - s_j >= 0          causal
    |p_i - s_j| < window    sliding window: with `causal`, the `window` newest positions, its own included
    segments are equal      sequences packed into one row

Unless positions are given, the last query stands at the last key ("bottom right", as in flash-attn; the `is_causal` of
torch aligns the first ones): s_j = j and p_i = m - l + i.

Axes: b batch (or 1 where every row is alike), l queries, m keys.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from longreach.errors import InputError


class AttentionMask(NamedTuple):
    """The masking rule of one call of `attention`; the default lets everyone see everything."""

    causal: bool = False
    window: int | None = None
    key_mask: Bool[Tensor, "b m"] | None = None
    query_segment: Int[Tensor, "b l"] | None = None
    key_segment: Int[Tensor, "b m"] | None = None
    query_position: Int[Tensor, "b l"] | None = None
    key_position: Int[Tensor, "b m"] | None = None

    def check(self) -> None:
        """Raise InputError where the parts do not fit together."""
        if self.window is not None and self.window < 1:
            raise InputError(f"window={self.window} lets no query see anything; it must be at least 1, or None")
        for name in ("segment", "position"):
            given = [getattr(self, f"{side}_{name}") is not None for side in ("query", "key")]
            if any(given) and not all(given):
                raise InputError(f"query_{name} and key_{name} only make sense together; give both or neither")

    def located(self, n_queries: int, n_keys: int, device: torch.device) -> "AttentionMask":
        """The same rule with its positions written out."""
        if self.query_position is not None:
            return self
        position = torch.arange(min(0, n_keys - n_queries), n_keys, device=device)[None]
        return self._replace(query_position=position[:, -n_queries:], key_position=position[:, -n_keys:])

    def tile(self, queries: slice, keys: slice) -> "AttentionMask":
        """The rule for a part of the queries and of the keys; needs positions."""

        def cut(tensor: Tensor | None, part: slice) -> Tensor | None:
            return None if tensor is None else tensor[:, part]

        return self._replace(
            key_mask=cut(self.key_mask, keys),
            query_segment=cut(self.query_segment, queries),
            key_segment=cut(self.key_segment, keys),
            query_position=cut(self.query_position, queries),
            key_position=cut(self.key_position, keys),
        )

    def distance(self) -> Int[Tensor, "b l m"]:
        """How far each key lies behind each query; needs positions."""
        assert self.query_position is not None
        assert self.key_position is not None
        return self.query_position[:, :, None] - self.key_position[:, None, :]

    def allowed(self) -> Bool[Tensor, "b l m"]:
        """Which query may see which key; needs positions."""
        distance = self.distance()
        allowed = distance >= 0 if self.causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            allowed = allowed & (distance.abs() < self.window)
        if self.key_mask is not None:
            allowed = allowed & self.key_mask[:, None, :]
        if self.query_segment is not None and self.key_segment is not None:
            allowed = allowed & (self.query_segment[:, :, None] == self.key_segment[:, None, :])
        return allowed


NO_MASK = AttentionMask()
"""Everyone sees everything."""
