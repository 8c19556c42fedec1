"""What RWKV-5, 6 and 7 have in common: a matrix in every head as memory, the position before, and three equal views.

Axes: b batch, l length, d channels, h heads, n channels of a head.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from longreach.errors import InputError
from longreach.mixers.base import SequenceMixer
from longreach.mixers.heads import split_heads


class RWKVState(NamedTuple):
    """The last input, and the memory of every head."""

    last: Float[Tensor, "b d"]
    memory: Float[Tensor, "b h n n"]


class RWKVMemory(SequenceMixer[RWKVState]):
    """A mixer that is given by its `prefill`.

    Args:
        d_model: width of the model.
        width: width of all heads together.
        head_dim: number of channels of a head.
    """

    keeps_its_start = True

    def __init__(self, d_model: int, width: int, head_dim: int) -> None:
        super().__init__(d_model, causal=True)
        if head_dim < 1 or width % head_dim:
            raise InputError(f"head_dim={head_dim} must divide the {width} channels of all heads")
        self.n_heads, self.head_dim = width // head_dim, head_dim

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """Mix the whole sequence."""
        return self.prefill(x, self.init_state(x.shape[0]), mask)[0]

    def init_state(self, batch_size: int) -> RWKVState:
        """Zeros before the first position."""
        weight = next(self.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        memory = weight.new_zeros(batch_size, self.n_heads, self.head_dim, self.head_dim, dtype=dtype)
        return RWKVState(memory.new_zeros(batch_size, self.d_model), memory)

    def step(self, x: Float[Tensor, "b d"], state: RWKVState) -> tuple[Float[Tensor, "b d"], RWKVState]:
        """Mix one position."""
        y, state = self.prefill(x[:, None], state)
        return y[:, 0], state

    @abstractmethod
    def prefill(
        self, x: Float[Tensor, "b l d"], state: RWKVState, mask: Bool[Tensor, "b l"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], RWKVState]:
        """Mix a chunk."""

    def _split(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b h l n"]:
        """Channels into heads."""
        return split_heads(x, self.n_heads)
