"""Learned absolute positions, added to the input of a backbone.

    h = backbone(x + P)            P a table with one row for every position (Vaswani et al. 2017, GPT-2)

    LanguageModel(256, LearnedPositions(Backbone(...), length=8192))

Only the real positions of a row are counted, so that padding is invisible wherever it lies.

Axes: b batch, l length, d model width.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer, State


class PositionedState(NamedTuple):
    """The position that comes next in every row, and the state of the backbone."""

    position: Int[Tensor, " b"]
    inner: State


class LearnedPositions(SequenceMixer[PositionedState]):
    """Adds a learned vector for each position to the input of `backbone`.

    Args:
        backbone: the stack of mixers.
        length: number of positions, which becomes the longest sequence that can be read.
        dropout: probability of dropping a channel of the sum.
    """

    def __init__(self, backbone: SequenceMixer, *, length: int, dropout: float = 0.0) -> None:
        super().__init__(backbone.d_model, causal=backbone.causal)
        if length < 1:
            raise InputError(f"length={length}: a table of positions has at least one")
        self.inner = backbone
        self.table = nn.Parameter(torch.empty(length, backbone.d_model).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.max_length = min(length, backbone.max_length or length)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """All layers, on the whole sequence."""
        start = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
        return self.inner(self._add(x, start, mask), mask)

    def init_state(self, batch_size: int) -> PositionedState:
        """Every row at position 0."""
        first = torch.zeros(batch_size, dtype=torch.long, device=self.table.device)
        return PositionedState(first, self.inner.init_state(batch_size))

    def step(self, x: Float[Tensor, "b d"], state: PositionedState) -> tuple[Float[Tensor, "b d"], PositionedState]:
        """All layers, on one position."""
        y, inner = self.inner.step(self._add(x[:, None], state.position, None)[:, 0], state.inner)
        return y, PositionedState(state.position + 1, inner)

    def prefill(
        self, x: Float[Tensor, "b l d"], state: PositionedState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], PositionedState]:
        """All layers, on a chunk."""
        y, inner = self.inner.prefill(self._add(x, state.position, mask), state.inner, mask)
        read = x.shape[1] if mask is None else mask.sum(1)
        return y, PositionedState(state.position + read, inner)

    def _add(self, x: Tensor, start: Tensor, mask: Tensor | None) -> Tensor:
        """`x` plus the vectors of its positions, which begin at `start` and advance where `mask` is True."""
        seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        position = start[:, None] + (seen.cumsum(1) - 1).clamp(min=0)
        if not position.is_cuda and position.numel() and position.max() >= len(self.table):
            raise InputError(
                f"position {int(position.max())} lies beyond the {len(self.table)} learned ones; read at most "
                f"max_length={self.max_length} positions, or build and train the model with more"
            )
        return self.dropout(x + self.table[position])
